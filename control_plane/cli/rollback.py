"""Make everything as it was after an earlier change."""

from __future__ import annotations

from typing import Annotated

import typer

from control_plane.cli import options
from control_plane.cli.context import connect
from control_plane.cli.options import Format
from control_plane.cli.waiting import finish
from topology.wire.gen.tradewind.v1 import admin_pb2 as pb

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def rollback(
    ctx: typer.Context,
    to: Annotated[
        int,
        typer.Option(
            "--to", help="The revision of the change to return to, as `history` shows it.", min=1
        ),
    ],
    reason: Annotated[str, typer.Option(help="Why, for those who look later. Required.")],
    dry_run: options.DryRun = False,
    force_residency: options.ForceResidency = False,
    force_last_region: options.ForceLastRegion = False,
    force_many: options.ForceMany = False,
    force_capacity: options.ForceCapacity = False,
    force_rollout: options.ForceRollout = False,
    immediate: options.Immediate = False,
    wait: options.Wait = False,
    timeout: options.Timeout = 30.0,
    output: options.Output = Format.TABLE,
) -> None:
    """Undo every change after the one at a revision, as one change like any other.

    Overrides stay as they are: drains and failovers are about regions as those are today. The
    safety rules and the forecast apply. A rollback can itself be undone.

    \b
    Examples:
      tradewind rollback --to 57 --reason "the new routes were wrong" --dry-run
      tradewind rollback --to 57 --reason "the new routes were wrong"
    """
    if not reason.strip():
        raise typer.BadParameter("say why: --reason")
    request = pb.RollbackRequest(
        to_revision=to,
        dry_run=dry_run,
        force=options.forced(
            force_residency, force_last_region, force_many, force_capacity, force_rollout
        ),
        reason=reason,
        immediate=immediate,
    )
    with connect(ctx) as client:
        response = client.rollback(request)
        finish(client, response, output, dry_run=dry_run, wait=wait, timeout_s=timeout)
