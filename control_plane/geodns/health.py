"""Which edges may be answered. Pure: observations and `now` go in, a set of names comes out.

Thresholds are asymmetric: two failures take an edge out, three successes bring it back, so that
an edge which flaps stays out. An edge that was never asked counts as healthy: a DNS server that
starts while the edges are fine must not answer differently from one that has been up for weeks.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

from msgspec import Meta, Struct


class HealthSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """How edges are asked: `GET http://<address>:<port>/readyz`, and 200 means yes."""

    enabled: bool = True  # false: every edge counts as healthy
    interval_ms: Annotated[int, Meta(ge=50)] = 1_000
    timeout_ms: Annotated[int, Meta(ge=10)] = 1_000
    down_after: Annotated[int, Meta(ge=1)] = 2  # failures in a row
    up_after: Annotated[int, Meta(ge=1)] = 3  # successes in a row
    path: str = "/readyz"
    port: Annotated[int, Meta(ge=1, le=65_535)] | None = None  # None: the edge's own
    probes_at_once: Annotated[int, Meta(ge=1)] = 64


class EdgeHealth(Struct, frozen=True):
    """What is known of one edge. Times are the monotonic clock's, in seconds."""

    healthy: bool = True
    since_s: float | None = None  # when `healthy` last changed; None: it never has
    streak: int = 0  # observations in a row that speak against `healthy`
    asked_s: float | None = None  # the last observation; None: none yet
    detail: str = "not asked yet"


class HealthBoard:
    """The state of every edge, and the set of those that are healthy."""

    def __init__(self, settings: HealthSettings) -> None:
        self._settings = settings
        self._edges: dict[str, EdgeHealth] = {}

    def keep(self, edges: Collection[str]) -> None:
        """Follow exactly these edges: new ones count as healthy, others are forgotten."""
        self._edges = {name: self._edges.get(name, EdgeHealth()) for name in sorted(edges)}

    def observe(self, edge: str, ok: bool, detail: str, now: float) -> bool:
        """Take in one answer or failure; returns whether the edge's health changed.

        An edge that is not followed any more is ignored.
        """
        before = self._edges.get(edge)
        if before is None:
            return False
        after = _step(before, ok, detail, now, self._settings)
        self._edges[edge] = after
        return after.healthy != before.healthy

    @property
    def healthy(self) -> frozenset[str]:
        return frozenset(name for name, edge in self._edges.items() if edge.healthy)

    @property
    def edges(self) -> dict[str, EdgeHealth]:
        return dict(self._edges)


def _step(
    edge: EdgeHealth, ok: bool, detail: str, now: float, settings: HealthSettings
) -> EdgeHealth:
    if ok == edge.healthy:
        return EdgeHealth(edge.healthy, edge.since_s, 0, now, detail)
    streak = edge.streak + 1
    needed = settings.down_after if edge.healthy else settings.up_after
    if streak < needed:
        return EdgeHealth(edge.healthy, edge.since_s, streak, now, detail)
    return EdgeHealth(ok, now, 0, now, detail)
