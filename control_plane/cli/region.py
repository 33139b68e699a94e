"""Drain, fail over and restore regions."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from control_plane.cli import options
from control_plane.cli.context import connect
from control_plane.cli.options import Format
from control_plane.cli.output import good, print_data, print_table, when
from control_plane.cli.plan_view import as_data, differs
from control_plane.cli.waiting import wait_for_nodes
from runtime.clock import SystemClock
from topology.wire.gen.tradewind.v1 import admin_pb2 as pb

app = typer.Typer(
    help="Drain, fail over and restore regions.", no_args_is_help=True, rich_markup_mode=None
)

Name = Annotated[str, typer.Argument(help="The region.")]
Why = Annotated[str, typer.Option("--reason", help="Why, for those who look later. Required.")]
To = Annotated[
    float,
    typer.Option("--to", help="How much of its requests to move away, in percent.", min=1, max=100),
]
Expires = Annotated[
    str, typer.Option(help="When it ends by itself: 30m, 2h, 1d, or a time as 2026-12-01T08:00Z.")
]
Wait = Annotated[
    bool, typer.Option("--wait/--no-wait", help="Wait until every connected node has it.")
]

_DURATION = re.compile(r"^([0-9]+(?:\.[0-9]+)?)([smhd])$")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@app.command()
def drain(
    ctx: typer.Context,
    region: Name,
    reason: Why,
    to: To = 100.0,
    expires: Expires = "",
    force_residency: options.ForceResidency = False,
    force_last_region: options.ForceLastRegion = False,
    force_many: options.ForceMany = False,
    wait: Wait = True,
    timeout: options.Timeout = 30.0,
    output: options.Output = Format.TABLE,
) -> None:
    """Move a region's requests to other regions; what it works on it finishes.

    \b
    Examples:
      tradewind region drain frankfurt --reason "kernel upgrade"
      tradewind region drain frankfurt --to 30 --expires 2h --reason "trying the new route"
    """
    force = options.forced(force_residency, force_last_region, force_many)
    request = _request(region, "drain", reason, to, expires, force)
    _set(ctx, request, wait, timeout, output)


@app.command()
def failover(
    ctx: typer.Context,
    region: Name,
    reason: Why,
    expires: Expires = "",
    force_residency: options.ForceResidency = False,
    force_last_region: options.ForceLastRegion = False,
    force_many: options.ForceMany = False,
    wait: Wait = True,
    timeout: options.Timeout = 30.0,
    output: options.Output = Format.TABLE,
) -> None:
    """Take a region out whole; nothing goes back to it before `restore`.

    \b
    Example:
      tradewind region failover dubai --reason "the site lost power"
    """
    force = options.forced(force_residency, force_last_region, force_many)
    request = _request(region, "failover", reason, 100.0, expires, force)
    _set(ctx, request, wait, timeout, output)


@app.command()
def restore(
    ctx: typer.Context,
    region: Name,
    reason: Why,
    wait: Wait = True,
    timeout: options.Timeout = 30.0,
    output: options.Output = Format.TABLE,
) -> None:
    """End a drain or a failover: the region takes requests again.

    \b
    Example:
      tradewind region restore frankfurt --reason "upgrade done"
    """
    with connect(ctx) as client:
        response = client.clear_override(pb.ClearOverrideRequest(regions=[region], reason=reason))
        _print_done(response, f"{region} restored", output)
        if wait:
            wait_for_nodes(client, response.revision, timeout)


@app.command("list")
def list_(ctx: typer.Context, output: options.Output = Format.TABLE) -> None:
    """List regions and what overrides them.

    \b
    Example:
      tradewind region list
    """
    with connect(ctx) as client:
        regions = [json.loads(r.json) for r in client.get("Region").resources]
        overrides = [json.loads(r.json) for r in client.get("Override").resources]
    now_s = SystemClock().wall()
    data = [_state(region, overrides, now_s) for region in regions]
    if output is not Format.TABLE:
        print_data(data, output)
        return
    headings = ("REGION", "CITY", "IN", "STATE", "UNTIL", "BY", "REASON")
    rows = [
        (
            d["name"],
            d["city"],
            d["jurisdiction"],
            d["state"],
            when(d["expires_s"] or 0),
            d["by"],
            d["reason"],
        )
        for d in data
    ]
    print_table(headings, rows)


def _request(
    region: str, action: str, reason: str, percent: float, expires: str, force: list[str]
) -> pb.SetOverrideRequest:
    return pb.SetOverrideRequest(
        regions=[region],
        action=action,
        reason=reason,
        percent=percent,
        expires_s=_expiry(expires, SystemClock().wall()) if expires else 0.0,
        force=force,
    )


def _set(
    ctx: typer.Context, request: pb.SetOverrideRequest, wait: bool, timeout: float, output: Format
) -> None:
    with connect(ctx) as client:
        response = client.set_override(request)
        verb = "drained" if request.action == "drain" else "failed over"
        _print_done(response, f"{request.regions[0]} {verb} ({request.percent:g}%)", output)
        if wait:
            wait_for_nodes(client, response.revision, timeout)


def _print_done(response: pb.ApplyResponse, text: str, output: Format) -> None:
    if output is not Format.TABLE:
        print_data(as_data(response), output)
        return
    already = "" if differs(response) else " already"
    typer.echo(good(f"{text}{already}") + f"; revision {response.revision}")


def _expiry(text: str, now_s: float) -> float:
    """Unix time of a duration from now, or of a time; a usage error otherwise."""
    duration = _DURATION.match(text)
    if duration:
        return now_s + float(duration[1]) * _UNIT_S[duration[2]]
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is no 30m, 2h, 1d and no time") from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _state(region: dict[str, Any], overrides: list[dict[str, Any]], now_s: float) -> dict[str, Any]:
    """One region with the strongest override that counts now."""
    live = [
        o
        for o in overrides
        if o["spec"]["region"] == region["name"]
        and (o["spec"].get("expires_s") is None or o["spec"]["expires_s"] > now_s)
    ]
    override = max(live, key=lambda o: float(o["spec"]["percent"]), default=None)
    spec = override["spec"] if override else {}
    verb = {"drain": "drained", "failover": "failed over"}.get(spec.get("action", ""), "serving")
    return {
        "name": region["name"],
        "city": region["spec"]["city"],
        "jurisdiction": region["spec"]["jurisdiction"],
        "state": f"{verb} {spec['percent']:g}%" if override else verb,
        "expires_s": spec.get("expires_s"),
        "by": override["author"] if override else None,
        "reason": spec.get("reason"),
    }
