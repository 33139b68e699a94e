"""Regions as `tradewind region list` shows them, and the load that a change would bring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer

from control_plane.admin.errors import AdminError
from control_plane.cli.output import bad, print_table, when
from topology.wire.gen.tradewind.v1 import admin_pb2 as pb

_VERBS = {"drain": "drained", "failover": "failed over"}


def newest(found: Sequence[tuple[str, pb.StatusResponse | AdminError]]) -> pb.StatusResponse | None:
    """Of what replicas say, the director's word, or else the newest; None where none answers."""
    answers = [s for _, s in found if not isinstance(s, AdminError)]
    return max(
        answers, key=lambda s: (s.director.self, s.director.number, s.revision), default=None
    )


def states(
    regions: Sequence[dict[str, Any]],
    overrides: Sequence[dict[str, Any]],
    status: pb.StatusResponse | None,
    now_s: float,
) -> list[dict[str, Any]]:
    """One entry per region. `regions` and `overrides` are documents as `get` gives them."""
    told = {region.region: region for region in status.regions} if status is not None else {}
    return [_state(region, overrides, told.get(region["name"]), now_s) for region in regions]


def _state(
    region: dict[str, Any],
    overrides: Sequence[dict[str, Any]],
    told: pb.RegionStatus | None,
    now_s: float,
) -> dict[str, Any]:
    """One region with the strongest override that counts now."""
    live = [
        o
        for o in overrides
        if o["spec"]["region"] == region["name"]
        and (o["spec"].get("expires_s") is None or o["spec"]["expires_s"] > now_s)
    ]
    override = max(live, key=lambda o: float(o["spec"]["percent"]), default=None)
    spec = override["spec"] if override else {}
    target = float(spec["percent"]) if override else None
    percent = _stands_at(spec, told) if override else 0.0
    return {
        "name": region["name"],
        "city": region["spec"]["city"],
        "jurisdiction": region["spec"]["jurisdiction"],
        "up": told.up if told is not None else None,
        "why": told.why if told is not None else None,
        "utilisation": told.utilisation if told is not None and told.utilisation >= 0 else None,
        "state": _words(spec.get("action", ""), percent, target),
        "percent": percent,
        "target": target,
        "paused": told.paused or None if told is not None and override else None,
        "expires_s": spec.get("expires_s"),
        "deadline_s": spec.get("deadline_s"),
        "by": override["author"] if override else None,
        "reason": spec.get("reason"),
    }


def _stands_at(spec: dict[str, Any], told: pb.RegionStatus | None) -> float:
    if not spec.get("over_s"):
        return float(spec["percent"])
    if told is not None and told.override_action:
        return told.override_percent
    return float(spec.get("from_percent", 0.0))


def _words(action: str, percent: float, target: float | None) -> str:
    if target is None:
        return "serving"
    verb = _VERBS.get(action, action)
    if percent == target:
        return f"{verb} {target:g}%"
    if target == 0.0:
        return f"returning, {percent:.0f}% still elsewhere"
    return f"{verb} {percent:.0f}% of {target:g}%"


def print_states(data: Sequence[dict[str, Any]]) -> None:
    headings = ("REGION", "CITY", "IN", "HEALTH", "LOAD", "STATE", "UNTIL", "BY", "REASON")
    rows = [
        (
            d["name"],
            d["city"],
            d["jurisdiction"],
            {True: "up", False: "DOWN", None: "?"}[d["up"]],
            "?" if d["utilisation"] is None else f"{d['utilisation']:.0%}",
            d["state"],
            when(d["expires_s"] or 0),
            d["by"],
            d["reason"],
        )
        for d in data
    ]
    print_table(headings, rows)
    for d in data:
        if d["up"] is False:
            typer.echo(bad(f"{d['name']} is down: {d['why']}"))
        if d["paused"]:
            typer.echo(f"{d['name']} waits at {d['percent']:.0f}%: {d['paused']}")
