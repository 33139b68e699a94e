"""The ways from an edge to a region: straight, or through one other region."""

from __future__ import annotations

from msgspec import Struct

DIRECT = "direct"


class PathView(Struct, frozen=True):
    """What one edge sees of one way to a region now. `relay` "": straight.

    `rtt_ms` is what the way is chosen by: it follows the measured one, and changes only when that
    has changed by so much that it could matter.
    """

    relay: str
    up: bool
    rtt_ms: float | None = None


def name_of(relay: str) -> str:
    """How people are told of a way."""
    return f"via {relay}" if relay else DIRECT
