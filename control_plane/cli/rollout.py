"""Watch and steer the rollout of a change."""

from __future__ import annotations

import sys
import threading
from typing import Annotated, Any

import typer

from control_plane.admin.client import AdminClient
from control_plane.admin.errors import AdminError
from control_plane.cli import exits, options
from control_plane.cli.context import connect
from control_plane.cli.options import Format
from control_plane.cli.output import ago, bad, good, line, print_data, when
from runtime.clock import SystemClock
from topology.wire.gen.tradewind.v1 import admin_pb2 as pb

app = typer.Typer(
    help="Watch and steer the rollout of a change.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)

UNDER_WAY = frozenset({"canary", "rolling", "paused"})
TAKEN_BACK = frozenset({"rolled-back", "aborted"})
_POLL_S = 1.0
_PATIENCE_S = 30.0  # how long no replica may answer before a watch ends


@app.command()
def status(
    ctx: typer.Context,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on until it is over; one line per news.")
    ] = False,
    output: options.Output = Format.TABLE,
) -> None:
    """Show how far the last change is: which stage, which nodes have it, what it waits for.

    With --watch it exits with 10 where the change is taken back, by itself or by somebody.

    \b
    Examples:
      tradewind rollout status
      tradewind rollout status --watch
    """
    with connect(ctx) as client:
        if watch:
            _watch(client, output)
            return
        found = _status(client)
    if output is not Format.TABLE:
        print_data(as_data(found), output)
    else:
        _print(found)


@app.command()
def pause(
    ctx: typer.Context, reason: options.Reason = "", output: options.Output = Format.TABLE
) -> None:
    """Stay at the present stage. A node that refuses it, or errors, still take it back.

    \b
    Example:
      tradewind rollout pause --reason "looking at the canaries"
    """
    _control(ctx, "pause", reason, output)


@app.command()
def resume(
    ctx: typer.Context, reason: options.Reason = "", output: options.Output = Format.TABLE
) -> None:
    """Go on from where it was paused; the present stage begins anew.

    \b
    Example:
      tradewind rollout resume
    """
    _control(ctx, "resume", reason, output)


@app.command()
def promote(
    ctx: typer.Context, reason: options.Reason = "", output: options.Output = Format.TABLE
) -> None:
    """Give the change to all nodes now.

    \b
    Example:
      tradewind rollout promote --reason "it mends an outage"
    """
    _control(ctx, "promote", reason, output)


@app.command()
def abort(
    ctx: typer.Context, reason: options.Reason = "", output: options.Output = Format.TABLE
) -> None:
    """Take the change back everywhere, as a change of its own.

    \b
    Example:
      tradewind rollout abort --reason "not what was meant"
    """
    _control(ctx, "abort", reason, output)


def _control(ctx: typer.Context, action: str, reason: str, output: Format) -> None:
    with connect(ctx) as client:
        found = client.control_rollout(pb.ControlRolloutRequest(action=action, reason=reason))
    if output is not Format.TABLE:
        print_data(as_data(found), output)
    else:
        _print(found)


def _status(client: AdminClient) -> pb.Rollout:
    """The rollout by the newest word of any replica, with the nodes of all of them. Raises
    `AdminError` where none answers."""
    found = client.statuses()
    answers = [s for _, s in found if not isinstance(s, AdminError)]
    if not answers:
        raise next(s for _, s in found if isinstance(s, AdminError))
    best = max(answers, key=lambda s: (not s.stale_since_s, s.director.self, s.rollout.number))
    told = pb.Rollout()
    told.CopyFrom(best.rollout)
    if not best.director.self:  # each knows only its own nodes
        same = [s.rollout for s in answers if s.rollout.number == told.number]
        told.nodes = sum(rollout.nodes for rollout in same)
        told.nodes_due = sum(rollout.nodes_due for rollout in same)
        told.nodes_with = sum(rollout.nodes_with for rollout in same)
    if told.status in UNDER_WAY and (best.stale_since_s or not best.director.replica):
        why = "no replica reaches the store" if best.stale_since_s else "nobody directs"
        told.why = f"STANDS STILL: {why}" + (f"; {told.why}" if told.why else "")
        told.next_step_s = 0.0
    return told


def _watch(client: AdminClient, output: Format) -> None:
    clock, pause_, shown = SystemClock(), threading.Event(), ""
    heard_s = clock.now()
    while True:
        try:
            found = _status(client)
        except AdminError as error:
            if not shown or not error.retryable or clock.now() - heard_s > _PATIENCE_S:
                raise
            pause_.wait(_POLL_S)
            continue  # a replica that is away for a moment does not end the watch
        heard_s = clock.now()
        news = _line(found)
        if output is Format.TABLE and news != shown:
            typer.echo(news)
            sys.stdout.flush()
        shown = news
        if found.status not in UNDER_WAY:
            break
        pause_.wait(_POLL_S)
    if output is not Format.TABLE:
        print_data(as_data(found), output)
    if found.status in TAKEN_BACK:
        raise typer.Exit(exits.TAKEN_BACK)


def _line(found: pb.Rollout) -> str:
    if not found.exists:
        return "no change was ever rolled out in stages"
    told = f"change {found.number}: {found.status}, {found.percent:g}% of nodes"
    told += f", {found.nodes_with} of {found.nodes_due} due have it ({found.nodes} connected)"
    return told + (f": {line(found.why)}" if found.why else "")


def _print(found: pb.Rollout) -> None:
    if not found.exists:
        typer.echo(_line(found))
        return
    now_s = SystemClock().wall()
    colour = bad if found.status in TAKEN_BACK else good
    typer.echo(f"change {found.number}, revision {found.revision}: {colour(found.status)}")
    why = line(found.reason) or "no reason given"
    typer.echo(f"  by {found.author}, {ago(found.started_s, now_s)} ago: {why}")
    typer.echo("  touches " + ", ".join(f"{key.kind}/{key.name}" for key in found.keys))
    if found.why:
        typer.echo(f"  {line(found.why)}")
    if found.status not in UNDER_WAY:
        return
    canaries = f", and {', '.join(found.canaries)}" if found.canaries else ""
    typer.echo(f"  {found.percent:g}% of nodes{canaries}; {ago(found.stage_since_s, now_s)} so far")
    typer.echo(
        f"  {found.nodes_with} of {found.nodes_due} connected nodes that are due have it; "
        f"{found.nodes} are connected"
    )
    rates = [_rate(found.error_rate_with), _rate(found.error_rate_without)]
    typer.echo(f"  errors: {rates[0]} at edges that have it, {rates[1]} at the others")
    if found.next_step_s:
        typer.echo(f"  next step at {when(found.next_step_s)}, if all is well")


def as_data(found: pb.Rollout) -> dict[str, Any]:
    """As `-o json` prints it; null where there is nothing to say."""
    if not found.exists:
        return {"exists": False}
    return {
        "exists": True,
        "number": found.number,
        "revision": found.revision,
        "status": found.status,
        "under_way": found.status in UNDER_WAY,
        "percent": found.percent,
        "why": found.why,
        "author": found.author,
        "reason": found.reason,
        "started_s": found.started_s,
        "stage_since_s": found.stage_since_s,
        "next_step_s": found.next_step_s or None,
        "nodes": {"with": found.nodes_with, "due": found.nodes_due, "connected": found.nodes},
        "canaries": list(found.canaries),
        "keys": [f"{key.kind}/{key.name}" for key in found.keys],
        "error_rate": {
            "with": found.error_rate_with if found.error_rate_with >= 0 else None,
            "without": found.error_rate_without if found.error_rate_without >= 0 else None,
        },
    }


def _rate(share: float) -> str:
    return "too few requests to say" if share < 0 else f"{share:.1%}"
