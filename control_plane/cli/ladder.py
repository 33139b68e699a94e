"""Show where each edge stands on the degradation ladder, and why."""

from __future__ import annotations

import json
import sys
import threading
from typing import Annotated

import typer

from control_plane.admin.client import AdminClient
from control_plane.admin.errors import AdminError
from control_plane.cli import completion, options
from control_plane.cli.context import connect
from control_plane.cli.ladder_view import News, as_data, lines_of, notes_of
from control_plane.cli.options import Format
from control_plane.cli.output import print_data
from runtime.clock import SystemClock
from topology.wire.gen.tradewind.v1 import admin_pb2 as pb

app = typer.Typer(rich_markup_mode=None, add_completion=False)

_POLL_S = 1.0  # edges tell once a second
_PATIENCE_S = 30.0  # how long no replica may answer before a watch ends


@app.command()
def ladder(
    ctx: typer.Context,
    edge: Annotated[str, typer.Option(help="Only this edge.", autocompletion=completion.edge)] = "",
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on until interrupted; on a terminal, redraw.")
    ] = False,
    output: options.Output = Format.TABLE,
) -> None:
    """Show for each edge and tier the step of the ladder at which requests begin, since when, the
    pressure and what it comes from, and what requests were given lately.

    Every replica is asked, since each hears some of the edges. Edges that none hears are named
    below the table. With --watch and -o json, one document a line. What the steps are and when
    they are taken: docs/ladder.md.

    \b
    Examples:
      tradewind ladder
      tradewind ladder --edge tokyo --watch
      tradewind ladder -o json
    """
    request = pb.LadderRequest(edge=edge)
    with connect(ctx) as client:
        if watch:
            _watch(client, request, output)
            return
        found, errors = client.ladder(request)
    if output is not Format.TABLE:
        print_data(as_data(found, errors), output)
        return
    for line in lines_of(found):
        typer.echo(line)
    for note in notes_of(found, errors):
        typer.echo(note, err=True)


def _watch(client: AdminClient, request: pb.LadderRequest, output: Format) -> None:
    clock, pause, heard_s, shown = SystemClock(), threading.Event(), None, _Shown(output)
    try:
        while True:
            try:
                found, errors = client.ladder(request)
            except AdminError as error:
                away_s = clock.now() - heard_s if heard_s is not None else _PATIENCE_S
                if not error.retryable or away_s >= _PATIENCE_S:
                    raise
                typer.echo(f"no replica answers: {error.message}", err=True)
            else:
                heard_s = clock.now()
                shown.add(found, errors)
                sys.stdout.flush()
            pause.wait(_POLL_S)
    except KeyboardInterrupt:
        return


class _Shown:
    """What a watch prints, each time."""

    def __init__(self, output: Format) -> None:
        self._output = output
        self._news = News()

    def add(self, found: pb.LadderResponse, errors: list[AdminError]) -> None:
        if self._output is Format.JSON:
            typer.echo(json.dumps(as_data(found, errors), ensure_ascii=False))
        elif self._output is not Format.TABLE:
            typer.echo("---")
            print_data(as_data(found, errors), self._output)
        elif sys.stdout.isatty():
            typer.echo("\x1b[H\x1b[2J", nl=False)
            for text in (*lines_of(found), *notes_of(found, errors)):
                typer.echo(text)
        else:
            for text in self._news.of(found, errors):
                typer.echo(text)
