"""Show who did what, and prove that nobody rewrote it."""

from __future__ import annotations

from typing import Annotated

import typer

from control_plane.cli import exits, options
from control_plane.cli.context import connect
from control_plane.cli.history import entry_data, fetch, print_older
from control_plane.cli.options import Format
from control_plane.cli.output import bad, good, print_data, print_table, when
from topology.wire.gen.tradewind.v1 import admin_pb2 as pb

app = typer.Typer(
    help="Show who did what, and prove that nobody rewrote it.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)


@app.command("list")
def list_(
    ctx: typer.Context,
    limit: Annotated[
        int, typer.Option(help="How many entries, the newest first.", min=1, max=1000)
    ] = 50,
    before: Annotated[int, typer.Option(help="Only entries older than this number.", min=0)] = 0,
    output: options.Output = Format.TABLE,
) -> None:
    """List audit entries, the newest first, with their hashes.

    \b
    Example:
      tradewind audit list --limit 10
    """
    with connect(ctx) as client:
        response = fetch(client, pb.HistoryRequest(limit=limit, before_number=before))
    entries = response.entries
    if output is not Format.TABLE:
        print_data([entry_data(entry) for entry in entries], output)
        return
    rows = [
        (
            entry.number,
            entry.revision,
            when(entry.time_s),
            entry.author,
            entry.replica,
            len(entry.changes),
            ", ".join(said.partition(":")[0] for said in entry.forced),
            entry.hash[:12],
            entry.reason,
        )
        for entry in entries
    ]
    headings = ("NUMBER", "REVISION", "WHEN", "BY", "AT", "RESOURCES", "FORCED", "HASH", "REASON")
    print_table(headings, rows)
    print_older(response)


@app.command()
def verify(ctx: typer.Context, output: options.Output = Format.TABLE) -> None:
    """Check that no audit or history entry was altered, removed, added or moved since it was made.

    Prints the hash of the newest entry. Kept elsewhere, it proves that everything up to it is
    still what it was: whoever can write to the store could otherwise replace all of it. Exits
    with 9 where something does not fit.

    \b
    Example:
      tradewind audit verify -o json
    """
    with connect(ctx) as client:
        found = client.verify_audit()
    if output is not Format.TABLE:
        print_data(_as_data(found), output)
    else:
        _print(found)
    if not found.intact:
        raise typer.Exit(exits.TAMPERED)


def _print(found: pb.VerifyAuditResponse) -> None:
    if found.unchained:
        typer.echo(
            f"warning: the oldest {found.unchained} entries are from before entries were "
            "chained: nothing proves them",
            err=True,
        )
    if not found.intact:
        typer.echo(bad(f"broken: {found.broken_at}"))
        return
    if not found.entries:
        typer.echo("nothing was changed yet")
        return
    span = f"{found.first_number} to {found.last_number}"
    typer.echo(good(f"intact: {found.entries} entries, {span}"))
    typer.echo(f"head: {found.head_hash or '(not chained yet)'}")


def _as_data(found: pb.VerifyAuditResponse) -> dict[str, object]:
    return {
        "intact": found.intact,
        "entries": found.entries,
        "first_number": found.first_number,
        "last_number": found.last_number,
        "unchained": found.unchained,
        "head_hash": found.head_hash or None,
        "broken_at": found.broken_at or None,
    }
