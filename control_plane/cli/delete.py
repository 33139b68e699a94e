"""Delete resources by name."""

from __future__ import annotations

from typing import Annotated

import typer

from control_plane.cli import completion, options
from control_plane.cli.context import connect
from control_plane.cli.options import Format, kind_named
from control_plane.cli.waiting import finish
from topology.wire.gen.tradewind.v1 import admin_pb2 as pb

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def delete(
    ctx: typer.Context,
    kind: Annotated[str, typer.Argument(help="The kind.", autocompletion=completion.kind)],
    names: Annotated[
        list[str],
        typer.Argument(help="One or more names.", autocompletion=completion.of_kind),
    ],
    dry_run: options.DryRun = False,
    reason: options.Reason = "",
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
    """Delete resources, all in one transaction or none.

    What others refer to cannot be deleted before they stop referring to it.

    \b
    Examples:
      tradewind delete Tenant globex --dry-run
      tradewind delete Link london-dubai riyadh-dubai --reason "circuit ended"
    """
    request = pb.ApplyRequest(
        removes=[pb.Key(kind=kind_named(kind), name=name) for name in names],
        reason=reason,
        force=options.forced(
            force_residency, force_last_region, force_many, force_capacity, force_rollout
        ),
        dry_run=dry_run,
        immediate=immediate,
    )
    with connect(ctx) as client:
        response = client.apply(request)
        finish(client, response, output, dry_run=dry_run, wait=wait, timeout_s=timeout)
