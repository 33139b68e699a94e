"""Region choice for this edge: `topology.routing.decide` on the latest snapshot and views.

A decision holds until the snapshot or the views change, since nothing else it depends on can:
so it is made once and kept. Overrides are the exception, as they expire, and as a partial one
draws anew for each request; while there are any, every request is decided by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from runtime.clock import Clock
from topology.routing import Decision, Views, decide
from topology.snapshot import Snapshot


class Choice:
    """Decides for one edge. The kept decisions are at most tenants times models."""

    def __init__(self, edge: str, views: Callable[[], Views], clock: Clock, rng: Random) -> None:
        self._edge = edge
        self._read_views = views
        self._clock = clock
        self._rng = rng
        self._snapshot = Snapshot.empty()
        self._views: Views = {}
        self._kept: dict[tuple[str, str], Decision] = {}

    def use(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._kept.clear()

    def decide(self, tenant: str, model: str) -> Decision:
        views = self._read_views()
        if views is not self._views:
            self._views = views
            self._kept.clear()
        kept = self._kept.get((tenant, model))
        if kept is not None:
            return kept
        snapshot = self._snapshot
        overridden = bool(snapshot.overrides)
        draw = self._rng.random() if overridden else 0.0
        now_s = self._clock.wall()
        decision = decide(snapshot, self._edge, tenant, model, views, now_s, draw)
        # A model's name comes from the client: only known ones may take room.
        if not overridden and decision.refusal != "unknown_model":
            self._kept[tenant, model] = decision
        return decision
