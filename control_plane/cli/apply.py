"""Create and update resources from YAML files."""

from __future__ import annotations

from typing import Annotated

import typer

from control_plane.cli import options
from control_plane.cli.context import connect
from control_plane.cli.options import Format
from control_plane.cli.sending import located, read_files, request_of
from control_plane.cli.waiting import finish

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def apply(
    ctx: typer.Context,
    file: Annotated[
        list[str], typer.Option("-f", "--file", help="A file, a folder, or - for stdin.")
    ],
    dry_run: options.DryRun = False,
    prune: Annotated[
        bool,
        typer.Option(
            "--prune",
            help="Also delete what the files leave out of the kinds they name; never overrides.",
        ),
    ] = False,
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
    """Create and update resources from YAML files, all in one transaction or none.

    Every mistake in every file is reported at once, with file and line. A document with a
    `revision` (as `get -o yaml` prints it) is applied only if that is still the latest.
    --dry-run shows every field that would change and the load that each region would carry.

    \b
    Examples:
      tradewind apply -f regions.yaml
      tradewind apply -f config/ --prune --dry-run
      tradewind get Tenant acme -o yaml | sed s/standard/vip/ | tradewind apply -f -
    """
    found = read_files(file)
    request = request_of(found)
    request.dry_run, request.prune, request.reason = dry_run, prune, reason
    request.immediate = immediate
    request.force.extend(
        options.forced(
            force_residency, force_last_region, force_many, force_capacity, force_rollout
        )
    )
    with connect(ctx) as client:
        with located(found.origins):
            response = client.apply(request)
        finish(client, response, output, dry_run=dry_run, wait=wait, timeout_s=timeout)
