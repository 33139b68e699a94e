"""Show what was changed: by whom, when and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from control_plane.cli import completion, options
from control_plane.cli.context import connect
from control_plane.cli.options import Format, kind_named
from control_plane.cli.output import line, print_data, when
from control_plane.cli.plan_view import change_data, print_change
from topology.wire.gen.tradewind.v1 import admin_pb2 as pb

if TYPE_CHECKING:
    from control_plane.admin.client import AdminClient

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def history(
    ctx: typer.Context,
    what: Annotated[
        str,
        typer.Argument(
            metavar="[KIND[/NAME]]",
            help="Only changes of this kind, or of this resource.",
            autocompletion=completion.kind,
        ),
    ] = "",
    limit: Annotated[
        int, typer.Option(help="How many changes, the newest first.", min=1, max=1000)
    ] = 20,
    before: Annotated[int, typer.Option(help="Only changes older than this number.", min=0)] = 0,
    output: options.Output = Format.TABLE,
) -> None:
    """Show changes, the newest first: who, when, why, every field, and which rules were forced.

    The revision is what `rollback --to` takes.

    \b
    Examples:
      tradewind history --limit 5
      tradewind history Region/frankfurt
      tradewind history Tenant -o json
    """
    kind, _, name = what.partition("/")
    if what and not kind:
        raise typer.BadParameter(f"{what!r} is no KIND and no KIND/NAME")
    request = pb.HistoryRequest(
        limit=limit, before_number=before, kind=kind_named(kind) if kind else "", name=name
    )
    with connect(ctx) as client:
        response = fetch(client, request)
    if output is not Format.TABLE:
        print_data([entry_data(entry) for entry in response.entries], output)
        return
    for entry in response.entries:
        _print(entry)
    if not response.entries:
        typer.echo("no such change is kept")
    print_older(response)


def fetch(client: AdminClient, request: pb.HistoryRequest) -> pb.HistoryResponse:
    """As many as are asked for: a replica tells some megabytes at a time."""
    found = pb.HistoryResponse()
    limit, before = request.limit, request.before_number
    while len(found.entries) < limit:
        part = pb.HistoryRequest(
            limit=limit - len(found.entries),
            before_number=before,
            kind=request.kind,
            name=request.name,
        )
        told = client.history(part)
        found.oldest_number = told.oldest_number
        found.entries.extend(told.entries)
        if not told.entries or told.entries[-1].number <= told.oldest_number:
            break
        before = told.entries[-1].number
    return found


def print_older(response: pb.HistoryResponse) -> None:
    if response.entries and response.entries[-1].number > response.oldest_number:
        typer.echo(f"older ones: --before {response.entries[-1].number}")


def _print(entry: pb.HistoryEntry) -> None:
    by = entry.author or "?"
    typer.echo(f"revision {entry.revision}  change {entry.number}  {when(entry.time_s)}  {by}")
    if entry.reason:
        typer.echo(f"  {line(entry.reason)}")
    for said in entry.forced:
        typer.echo(f"  forced: {line(said)}")
    for change in entry.changes:
        print_change(change, fields=True, indent="  ")
    typer.echo()


def entry_data(entry: pb.HistoryEntry) -> dict[str, Any]:
    return {
        "revision": entry.revision,
        "number": entry.number,
        "time_s": entry.time_s,
        "author": entry.author,
        "replica": entry.replica,
        "reason": entry.reason,
        "forced": list(entry.forced),
        "changes": [change_data(change) for change in entry.changes],
        "hash": entry.hash or None,
        "previous": entry.previous or None,
    }
