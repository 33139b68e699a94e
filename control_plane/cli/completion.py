"""Names for the shell to complete, from the control plane.

None where it does not answer at once, or nobody said where it is: who is still typing is told of
no error.
"""

from __future__ import annotations

import typer

from control_plane.cli.context import connect
from control_plane.cli.options import kind_named
from runtime.errors import TradewindError
from topology.resources import KINDS

_PATIENCE_S = 1.5


def region(ctx: typer.Context, incomplete: str) -> list[str]:
    return _names(ctx, "Region", incomplete)


def edge(ctx: typer.Context, incomplete: str) -> list[str]:
    return _names(ctx, "EdgeSite", incomplete)


def tenant(ctx: typer.Context, incomplete: str) -> list[str]:
    return _names(ctx, "Tenant", incomplete)


def model(ctx: typer.Context, incomplete: str) -> list[str]:
    return _names(ctx, "Model", incomplete)


def of_kind(ctx: typer.Context, incomplete: str) -> list[str]:
    """Of the kind that was typed before."""
    try:
        return _names(ctx, kind_named(ctx.params.get("kind") or ""), incomplete)
    except typer.BadParameter:
        return []


def kind(incomplete: str) -> list[str]:
    return [name for name in KINDS if name.lower().startswith(incomplete.lower())]


def _names(ctx: typer.Context, wanted: str, incomplete: str) -> list[str]:
    try:
        with connect(ctx) as client:
            found = client.get(wanted, timeout_s=_PATIENCE_S).resources
    except TradewindError:
        return []
    return [resource.name for resource in found if resource.name.startswith(incomplete)]
