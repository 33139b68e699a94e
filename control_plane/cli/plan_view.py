"""A change, as people and programs see it: what differs, what was refused, what came of it."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import typer

from control_plane.cli.output import bad, good
from topology.wire.gen.tradewind.v1 import admin_pb2 as pb

_WORDS = {
    pb.Change.ACTION_CREATE: "create",
    pb.Change.ACTION_UPDATE: "update",
    pb.Change.ACTION_DELETE: "delete",
    pb.Change.ACTION_UNCHANGED: "unchanged",
}
_SIGNS = {"create": "+", "update": "~", "delete": "-"}


def differs(response: pb.ApplyResponse) -> bool:
    return any(change.action != pb.Change.ACTION_UNCHANGED for change in response.changes)


def print_changes(response: pb.ApplyResponse, *, fields: bool) -> None:
    """One line for each resource that differs, and with `fields` one for each field."""
    for change in response.changes:
        word = _WORDS[change.action]
        if word == "unchanged":
            continue
        line = f"{_SIGNS[word]} {change.key.kind}/{change.key.name}"
        typer.echo(bad(line) if word == "delete" else good(line) if word == "create" else line)
        if fields and word != "delete":
            for field in change.fields:
                typer.echo(
                    f"    {field.path}: {field.before or '(none)'} -> {field.after or '(none)'}"
                )
    for warning in response.warnings:
        typer.echo(f"warning: {warning}", err=True)


def print_refusals(response: pb.ApplyResponse) -> None:
    for refusal in response.refusals:
        typer.echo(bad(f"would be refused: {refusal.message}") + f" (--force-{refusal.rule})")


def summary(response: pb.ApplyResponse) -> str:
    """`2 created, 1 updated, 5 unchanged`."""
    counts = Counter(_WORDS[change.action] for change in response.changes)
    told = {"create": "created", "update": "updated", "delete": "deleted", "unchanged": "unchanged"}
    return ", ".join(f"{counts[word]} {told[word]}" for word in told if counts[word]) or "nothing"


def as_data(response: pb.ApplyResponse) -> dict[str, Any]:
    return {
        "applied": response.applied,
        "revision": response.revision,
        "changes": [
            {
                "key": f"{change.key.kind}/{change.key.name}",
                "action": _WORDS[change.action],
                "fields": [
                    {"path": f.path, "before": _value(f.before), "after": _value(f.after)}
                    for f in change.fields
                ],
            }
            for change in response.changes
        ],
        "refusals": [{"rule": r.rule, "message": r.message} for r in response.refusals],
        "warnings": list(response.warnings),
    }


def _value(text: str) -> Any:
    return json.loads(text) if text else None
