"""A change, as people and programs see it: what differs, what was refused, what came of it."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import typer

from control_plane.cli import exits
from control_plane.cli.options import Format
from control_plane.cli.output import bad, good, print_data, print_table
from topology.wire.gen.tradewind.v1 import admin_pb2 as pb

_WORDS = {
    pb.Change.ACTION_CREATE: "create",
    pb.Change.ACTION_UPDATE: "update",
    pb.Change.ACTION_DELETE: "delete",
    pb.Change.ACTION_UNCHANGED: "unchanged",
}
_SIGNS = {"create": "+", "update": "~", "delete": "-"}


def print_plan(response: pb.ApplyResponse) -> None:
    """What would happen, whole: each field, the load per region, what would be refused."""
    print_changes(response, fields=True)
    print_forecast(response)
    print_refusals(response)
    staged = "; in stages, as Policy says" if response.staged and differs(response) else ""
    typer.echo(f"would be: {summary(response)}; revision {response.revision}{staged}")


def show(response: pb.ApplyResponse, output: Format, *, dry_run: bool) -> None:
    """A plan, or what came of it, in whatever form was asked for.

    Raises `typer.Exit(REFUSED)` where a dry run says that the change would be refused.
    """
    if output is not Format.TABLE:
        print_data(as_data(response), output)
    elif dry_run:
        print_plan(response)
    else:
        print_changes(response, fields=False)
        typer.echo(f"{summary(response)}; revision {response.revision}")
        if response.staged and response.applied:
            typer.echo("it is rolled out in stages: `tradewind rollout status`")
    if dry_run and response.refusals:
        raise typer.Exit(exits.REFUSED)


def differs(response: pb.ApplyResponse) -> bool:
    return any(change.action != pb.Change.ACTION_UNCHANGED for change in response.changes)


def print_changes(response: pb.ApplyResponse, *, fields: bool) -> None:
    """One line for each resource that differs, and with `fields` one for each field."""
    for change in response.changes:
        print_change(change, fields=fields)
    for warning in response.warnings:
        typer.echo(f"warning: {warning}", err=True)


def print_change(change: pb.Change, *, fields: bool, indent: str = "") -> None:
    word = _WORDS[change.action]
    if word == "unchanged":
        return
    line = f"{indent}{_SIGNS[word]} {change.key.kind}/{change.key.name}"
    typer.echo(bad(line) if word == "delete" else good(line) if word == "create" else line)
    if not fields or word == "delete":
        return
    for field in change.fields:
        before, after = field.before or "(none)", field.after or "(none)"
        typer.echo(f"{indent}    {field.path}: {before} -> {after}")


def print_forecast(response: pb.ApplyResponse) -> None:
    """Each region's load now and after the change, in tokens per second, and its capacity."""
    if not response.forecast or not differs(response):
        return
    typer.echo()
    headings = ("REGION", "NOW TOKENS/S", "AFTER", "CAPACITY", "LOAD")
    print_table(headings, [_forecast_row(load) for load in response.forecast])
    typer.echo()


def _forecast_row(load: pb.RegionForecast) -> tuple[str, ...]:
    capacity = f"{load.capacity_tokens_per_s:,.0f}"
    if not load.known:
        return (load.region, "unknown", "unknown", capacity, "unknown")
    share = "-"
    if load.capacity_tokens_per_s:
        share = f"{load.after_tokens_per_s / load.capacity_tokens_per_s:.0%}"
    if load.after_tokens_per_s > load.capacity_tokens_per_s:
        share += " OVER"
    now, after = load.before_tokens_per_s, load.after_tokens_per_s
    return (load.region, f"{now:,.0f}", f"{after:,.0f}", capacity, share)


def print_refusals(response: pb.ApplyResponse) -> None:
    for refusal in response.refusals:
        typer.echo(bad(f"would be refused: {refusal.message}") + f" (--force-{refusal.rule})")


def summary(response: pb.ApplyResponse) -> str:
    """`2 created, 1 updated, 5 unchanged`."""
    counts = Counter(_WORDS[change.action] for change in response.changes)
    told = {"create": "created", "update": "updated", "delete": "deleted", "unchanged": "unchanged"}
    return ", ".join(f"{counts[word]} {told[word]}" for word in told if counts[word]) or "nothing"


def change_data(change: pb.Change) -> dict[str, Any]:
    return {
        "key": f"{change.key.kind}/{change.key.name}",
        "action": _WORDS[change.action],
        "fields": [
            {"path": f.path, "before": _value(f.before), "after": _value(f.after)}
            for f in change.fields
        ],
    }


def as_data(response: pb.ApplyResponse) -> dict[str, Any]:
    return {
        "applied": response.applied,
        "revision": response.revision,
        "changes": [change_data(change) for change in response.changes],
        "refusals": [{"rule": r.rule, "message": r.message} for r in response.refusals],
        "warnings": list(response.warnings),
        "forecast": [
            {
                "region": load.region,
                "known": load.known,
                "before_tokens_per_s": load.before_tokens_per_s if load.known else None,
                "after_tokens_per_s": load.after_tokens_per_s if load.known else None,
                "capacity_tokens_per_s": load.capacity_tokens_per_s,
            }
            for load in response.forecast
        ],
        "staged": response.staged,
    }


def _value(text: str) -> Any:
    return json.loads(text) if text else None
