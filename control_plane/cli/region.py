"""Drain, fail over and restore regions."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from control_plane.cli import completion, exits, options
from control_plane.cli.context import connect
from control_plane.cli.durations import is_duration, seconds
from control_plane.cli.options import Format
from control_plane.cli.output import good, print_data
from control_plane.cli.plan_view import (
    as_data,
    differs,
    print_changes,
    print_forecast,
    print_refusals,
)
from control_plane.cli.region_progress import Goal, follow
from control_plane.cli.region_view import newest, print_states, states
from control_plane.cli.waiting import wait_for_nodes
from runtime.clock import SystemClock
from runtime.errors import TradewindError
from topology.wire.gen.tradewind.v1 import admin_pb2 as pb

app = typer.Typer(
    help="Drain, fail over and restore regions.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)

Names = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="NAME...",
        help="The regions; several are one change, all or none.",
        autocompletion=completion.region,
    ),
]
In = Annotated[
    list[str] | None,
    typer.Option("--in", metavar="JURISDICTION", help="Instead of names: all regions that lie in."),
]
Why = Annotated[str, typer.Option("--reason", help="Why, for those who look later. Required.")]
To = Annotated[
    float,
    typer.Option("--to", help="How much of its requests to move away, in percent.", min=1, max=100),
]
Over = Annotated[
    str,
    typer.Option(help="How long to take for it: 90s, 10m, 2h. Slower while receivers suffer."),
]
Deadline = Annotated[
    str,
    typer.Option(
        help="Answers that still run there so long after it is full go on elsewhere: 30s, 10m."
    ),
]
Expires = Annotated[
    str, typer.Option(help="When it ends by itself: 30m, 2h, 1d, or a time as 2026-12-01T08:00Z.")
]
Wait = Annotated[
    bool,
    typer.Option("--wait/--no-wait", help="Show progress until it is complete on every node."),
]
Timeout = Annotated[
    float | None,
    typer.Option(
        help="How long to wait, in seconds: 30 for nodes; with --over, until it is there.",
        min=0.0,
        max=604_800.0,
    ),
]

_NODES_S = 30.0


class EmptySelector(TradewindError):
    """Nothing is selected, which is never everything."""

    code = "refused"


@app.command()
def drain(
    ctx: typer.Context,
    reason: Why,
    regions: Names = None,
    in_: In = None,
    to: To = 100.0,
    over: Over = "",
    deadline: Deadline = "",
    expires: Expires = "",
    dry_run: options.DryRun = False,
    force_residency: options.ForceResidency = False,
    force_last_region: options.ForceLastRegion = False,
    force_many: options.ForceMany = False,
    force_capacity: options.ForceCapacity = False,
    force_empty_selector: options.ForceEmptySelector = False,
    wait: Wait = True,
    timeout: Timeout = None,
    output: options.Output = Format.TABLE,
) -> None:
    """Move requests of regions to other regions; what they work on they finish, until --deadline.

    With --over the director goes there step by step, and waits while a region that receives is
    too full, fails or slows down. Interrupting this command does not stop a drain. Past --deadline
    the answers that still run there go on in other regions, unseen by their clients; those that no
    other region may give end where they are.

    \b
    Examples:
      tradewind region drain frankfurt --reason "kernel upgrade"
      tradewind region drain frankfurt --over 10m --expires 2h --reason "kernel upgrade"
      tradewind region drain frankfurt --deadline 30s --reason "new kernel, and no waiting"
      tradewind region drain --in EU --to 30 --dry-run --reason "what would it do?"
    """
    force = options.forced(force_residency, force_last_region, force_many, force_capacity)
    request = _request("drain", reason, to, over, deadline, expires, dry_run, force)
    _set(ctx, request, regions, in_, force_empty_selector, wait, timeout, output)


@app.command()
def failover(
    ctx: typer.Context,
    reason: Why,
    regions: Names = None,
    in_: In = None,
    to: To = 100.0,
    over: Over = "",
    deadline: Deadline = "",
    expires: Expires = "",
    dry_run: options.DryRun = False,
    force_residency: options.ForceResidency = False,
    force_last_region: options.ForceLastRegion = False,
    force_many: options.ForceMany = False,
    force_capacity: options.ForceCapacity = False,
    force_empty_selector: options.ForceEmptySelector = False,
    wait: Wait = True,
    timeout: Timeout = None,
    output: options.Output = Format.TABLE,
) -> None:
    """Take regions out; however well they get, nothing goes back to them before `restore`.

    Only --expires, where you name it, ends a failover by itself. --deadline is as with `drain`.

    \b
    Examples:
      tradewind region failover dubai --reason "the site lost power"
      tradewind region failover dubai frankfurt --over 2m --reason "a cable is being cut"
    """
    force = options.forced(force_residency, force_last_region, force_many, force_capacity)
    request = _request("failover", reason, to, over, deadline, expires, dry_run, force)
    _set(ctx, request, regions, in_, force_empty_selector, wait, timeout, output)


@app.command()
def restore(
    ctx: typer.Context,
    reason: Why,
    regions: Names = None,
    in_: In = None,
    over: Over = "",
    dry_run: options.DryRun = False,
    force_many: options.ForceMany = False,
    force_capacity: options.ForceCapacity = False,
    force_empty_selector: options.ForceEmptySelector = False,
    wait: Wait = True,
    timeout: Timeout = None,
    output: options.Output = Format.TABLE,
) -> None:
    """End drains and failovers: the regions take requests again, at once or --over a time.

    \b
    Examples:
      tradewind region restore frankfurt --reason "upgrade done"
      tradewind region restore frankfurt --over 5m --reason "upgrade done"
    """
    request = pb.ClearOverrideRequest(
        reason=reason,
        over_s=seconds("--over", over),
        force=options.forced(many=force_many, capacity=force_capacity),
        dry_run=dry_run,
    )
    with connect(ctx) as client:
        names = _selected(client, regions, in_, force_empty_selector, overridden=True)
        if not names:
            _nothing_to_do(output)
            return
        request.regions.extend(names)
        response = client.clear_override(request)
        moving = " begins to return" if request.over_s else " restored"
        _print_done(response, f"{', '.join(names)}{moving}", dry_run, output)
        if wait and not dry_run:
            goal = Goal(tuple(names), 0.0, response.revision)
            _wait(client, response, goal, request, timeout, output)


@app.command("list")
def list_(ctx: typer.Context, output: options.Output = Format.TABLE) -> None:
    """List regions: whether they are up, what overrides them, where that stands and until when.

    \b
    Example:
      tradewind region list
    """
    with connect(ctx) as client:
        regions = [json.loads(r.json) for r in client.get("Region").resources]
        overrides = [json.loads(r.json) for r in client.get("Override").resources]
        status = newest(client.statuses())
    data = states(regions, overrides, status, SystemClock().wall())
    if output is not Format.TABLE:
        print_data(data, output)
    else:
        print_states(data)


def _request(
    action: str,
    reason: str,
    percent: float,
    over: str,
    deadline: str,
    expires: str,
    dry_run: bool,
    force: list[str],
) -> pb.SetOverrideRequest:
    return pb.SetOverrideRequest(
        action=action,
        reason=reason,
        percent=percent,
        over_s=seconds("--over", over),
        deadline_s=seconds("--deadline", deadline) if deadline else None,
        expires_s=_expiry(expires, SystemClock().wall()) if expires else 0.0,
        force=force,
        dry_run=dry_run,
    )


def _set(
    ctx: typer.Context,
    request: pb.SetOverrideRequest,
    regions: list[str] | None,
    jurisdictions: list[str] | None,
    force_empty: bool,
    wait: bool,
    timeout: float | None,
    output: Format,
) -> None:
    with connect(ctx) as client:
        names = _selected(client, regions, jurisdictions, force_empty)
        if not names:
            _nothing_to_do(output)
            return
        request.regions.extend(names)
        response = client.set_override(request)
        verb = "drained" if request.action == "drain" else "failed over"
        goes = f"begins to be {verb}, to {request.percent:g}%"
        text = goes if request.over_s else f"{verb} ({request.percent:g}%)"
        _print_done(response, f"{', '.join(names)} {text}", request.dry_run, output)
        if wait and not request.dry_run:
            goal = Goal(tuple(names), request.percent, response.revision)
            _wait(client, response, goal, request, timeout, output)


def _wait(
    client: Any,
    response: pb.ApplyResponse,
    goal: Goal,
    request: pb.SetOverrideRequest | pb.ClearOverrideRequest,
    timeout: float | None,
    output: Format,
) -> None:
    if request.over_s:
        follow(client, goal, timeout)
        typer.echo(good("complete"), err=True)
        return
    limit_s = _NODES_S if timeout is None else timeout
    wait_for_nodes(client, response.revision, limit_s, quiet=output is not Format.TABLE)


def _selected(
    client: Any,
    names: list[str] | None,
    jurisdictions: list[str] | None,
    force_empty: bool,
    *,
    overridden: bool = False,
) -> list[str]:
    """The regions that are meant. Empty only where that was forced; raises `EmptySelector`."""
    if names and jurisdictions is not None:
        raise typer.BadParameter("name regions, or select them with --in: not both")
    if names:
        return list(dict.fromkeys(names))
    found: list[str] = []
    if jurisdictions:
        regions = [json.loads(r.json) for r in client.get("Region").resources]
        found = [r["name"] for r in regions if r["spec"]["jurisdiction"] in jurisdictions]
        if overridden:
            held = [json.loads(r.json) for r in client.get("Override").resources]
            found = [name for name in found if any(o["spec"]["region"] == name for o in held)]
    if not found and not force_empty:
        where = ", ".join(map(repr, jurisdictions or []))
        what = "no overridden region" if overridden else "no region"
        raise EmptySelector(
            f"{what} lies in {where}: nothing was changed" if where else "no region is named",
            hint="empty is not all; if nothing to do is fine: --force-empty-selector",
        )
    return found


def _nothing_to_do(output: Format) -> None:
    if output is not Format.TABLE:
        print_data(as_data(pb.ApplyResponse()), output)
    else:
        typer.echo("no region is selected: nothing to do")


def _print_done(response: pb.ApplyResponse, text: str, dry_run: bool, output: Format) -> None:
    if output is not Format.TABLE:
        print_data(as_data(response), output)
    else:
        if dry_run:
            print_changes(response, fields=True)
        else:
            for warning in response.warnings:
                typer.echo(f"warning: {warning}", err=True)
        print_forecast(response)
        print_refusals(response)
        already = "" if differs(response) else " already"
        would = "would be: " if dry_run else ""
        typer.echo(would + good(f"{text}{already}") + f"; revision {response.revision}")
    if dry_run and response.refusals:
        raise typer.Exit(exits.REFUSED)


def _expiry(text: str, now_s: float) -> float:
    """Unix time of a duration from now, or of a time; a usage error otherwise."""
    if is_duration(text):
        return now_s + seconds("--expires", text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is no 30m, 2h, 1d and no time") from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
