"""Show how each edge reaches each region, and why that way."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Protocol

import typer

from control_plane.admin.client import AdminClient
from control_plane.admin.errors import AdminError
from control_plane.cli import completion, options
from control_plane.cli.context import connect
from control_plane.cli.options import Format
from control_plane.cli.output import print_data
from control_plane.cli.paths_view import Wanted, as_data, line_of, lines_of, notes_of
from runtime.clock import SystemClock
from topology.wire.gen.tradewind.v1 import admin_pb2 as pb

app = typer.Typer(rich_markup_mode=None, add_completion=False)

_POLL_S = 1.0  # edges tell once a second
_PATIENCE_S = 30.0  # how long no replica may answer before a watch ends


@app.command()
def paths(
    ctx: typer.Context,
    edge: Annotated[
        str, typer.Option(help="Only from this edge.", autocompletion=completion.edge)
    ] = "",
    region: Annotated[
        str, typer.Option(help="Only to this region.", autocompletion=completion.region)
    ] = "",
    events: Annotated[
        bool, typer.Option("--events", help="Instead: how the paths in use changed lately.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on until interrupted; on a terminal, redraw.")
    ] = False,
    output: options.Output = Format.TABLE,
) -> None:
    """Show each path from an edge to a region: straight or through a relay, whether it is up, what
    it measures, and why it is used or not. The one in use is marked with *.

    Every replica is asked, since each hears some of the edges. Edges that none hears are named
    below the table. With --watch and -o json, one document a line.

    \b
    Examples:
      tradewind paths
      tradewind paths --edge tokyo --watch
      tradewind paths --region singapore --events
      tradewind paths --edge tokyo -o json
    """
    wanted = Wanted(pb.PathsRequest(edge=edge, region=region), events)
    with connect(ctx) as client:
        if watch:
            _watch(client, wanted, output)
            return
        found, errors = client.paths(wanted.request)
    if output is not Format.TABLE:
        print_data(as_data(found, errors), output)
        return
    for line in lines_of(found, wanted):
        typer.echo(line)
    for note in notes_of(found, errors):
        typer.echo(note, err=True)


class Display(Protocol):
    """Where a table is shown over and over."""

    def show(self, found: pb.PathsResponse, errors: Sequence[AdminError]) -> None: ...

    def away(self, error: AdminError) -> None:
        """No replica answers for the moment."""
        ...


def _watch(client: AdminClient, wanted: Wanted, output: Format) -> None:
    clock, pause, heard_s = SystemClock(), threading.Event(), None
    try:
        with _display(wanted, output) as display:
            while True:
                try:
                    found, errors = client.paths(wanted.request)
                except AdminError as error:
                    away_s = clock.now() - heard_s if heard_s is not None else _PATIENCE_S
                    if not error.retryable or away_s >= _PATIENCE_S:
                        raise
                    display.away(error)  # a replica that is away for a moment ends no watch
                else:
                    heard_s = clock.now()
                    display.show(found, errors)
                pause.wait(_POLL_S)
    except KeyboardInterrupt:
        return


class _Documents:
    """A line of JSON, or a document of YAML, each time."""

    def __init__(self, output: Format) -> None:
        self._output = output

    def show(self, found: pb.PathsResponse, errors: Sequence[AdminError]) -> None:
        data = as_data(found, errors)
        if self._output is Format.JSON:
            typer.echo(json.dumps(data, ensure_ascii=False))
        else:
            typer.echo("---")
            print_data(data, self._output)
        sys.stdout.flush()

    def away(self, error: AdminError) -> None:
        typer.echo(f"no replica answers: {error.message}", err=True)


class _News:
    """Off a terminal: the changes, each once, after the table as it is at the beginning."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._shown: set[Any] | None = None

    def show(self, found: pb.PathsResponse, errors: Sequence[AdminError]) -> None:
        changes = {
            (event.at_s, edge.node, event.region, event.before, event.after, event.why)
            for edge in found.edges
            for event in edge.events
        }
        if self._shown is None:
            for text in (*lines_of(found, self._wanted), *notes_of(found, errors)):
                typer.echo(text)
        else:
            for change in sorted(changes - self._shown):
                typer.echo(line_of(*change))
        self._shown = changes
        sys.stdout.flush()

    def away(self, error: AdminError) -> None:
        typer.echo(f"no replica answers: {error.message}", err=True)


class _Live:
    """A table that is written over."""

    def __init__(self, live: Any, wanted: Wanted) -> None:
        self._live = live
        self._wanted = wanted
        self._last: list[str] = []

    def show(self, found: pb.PathsResponse, errors: Sequence[AdminError]) -> None:
        self._last = [*lines_of(found, self._wanted), *notes_of(found, errors)]
        self._draw(self._last)

    def away(self, error: AdminError) -> None:
        self._draw([*self._last, f"no replica answers; shown is what was: {error.message}"])

    def _draw(self, lines: Sequence[str]) -> None:
        from rich.text import Text

        text = Text("\n".join(lines), no_wrap=True, overflow="ellipsis")
        self._live.update(text, refresh=True)


@contextmanager
def _display(wanted: Wanted, output: Format) -> Iterator[Display]:
    if output is not Format.TABLE:
        yield _Documents(output)
    elif not sys.stdout.isatty():
        yield _News(wanted)
    else:
        from rich.live import Live

        with Live(auto_refresh=False) as live:
            yield _Live(live, wanted)
