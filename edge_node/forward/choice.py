"""Region choice for this edge: `topology.routing.plan` on what is known now.

A plan holds until the snapshot, the directive or the views change, or an override expires: so it
is made once and kept, and a request at most draws from it.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from runtime.clock import Clock
from topology.directive import NONE, Directive
from topology.routing import Decision, Plan, Views, plan
from topology.snapshot import Snapshot

_FOREVER = float("inf")


class Choice:
    """Decides for one edge. The kept plans are at most tenants times models."""

    def __init__(self, edge: str, views: Callable[[], Views], clock: Clock, rng: Random) -> None:
        self._edge = edge
        self._read_views = views
        self.clock = clock
        self._draw = rng.random
        self._snapshot = Snapshot.empty()
        self._directive = NONE
        self._views: Views = {}
        self._kept: dict[tuple[str, str], Plan] = {}
        self._same: dict[tuple[str, str], Decision] = {}  # where no request's draw matters
        self._standing_in: dict[tuple[str, str], Plan] = {}

    @property
    def snapshot(self) -> Snapshot:
        return self._snapshot

    @property
    def directive(self) -> Directive:
        return self._directive

    def use(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._forget()

    def use_directive(self, directive: Directive) -> None:
        self._directive = directive
        self._forget()

    def decide(self, tenant: str, model: str) -> Decision:
        views = self._read_views()
        if views is not self._views:
            self._views = views
            self._forget()
        same = self._same.get((tenant, model))
        return same if same is not None else self._drawn(tenant, model)

    def decide_stand_in(self, tenant: str, model: str) -> Decision:
        """As `decide`, of a model that answers in place of one that the tenant may use."""
        self._look()
        kept = self._standing_in.get((tenant, model))
        if kept is None or (kept.until_s < _FOREVER and self.clock.wall() >= kept.until_s):
            kept = self._standing_in[tenant, model] = plan(
                self._snapshot, self._edge, tenant, model,
                self._views, self.clock.wall(), self._directive, stand_in=True,
            )  # fmt: skip
        return kept.at(self._draw(), self._draw())

    def _look(self) -> None:
        views = self._read_views()
        if views is not self._views:
            self._views = views
            self._forget()

    def _drawn(self, tenant: str, model: str) -> Decision:
        kept = self._kept.get((tenant, model))
        if kept is None or (kept.until_s < _FOREVER and self.clock.wall() >= kept.until_s):
            kept = self._plan(tenant, model)
        return kept.only or kept.at(self._draw(), self._draw())

    def _plan(self, tenant: str, model: str) -> Plan:
        made = plan(
            self._snapshot, self._edge, tenant, model,
            self._views, self.clock.wall(), self._directive,
        )  # fmt: skip
        # Names may come from clients: only known ones may take room.
        if made.steps[0].decisions[0].refusal != "unknown_model":
            self._kept[tenant, model] = made
            if made.only is not None and made.until_s == _FOREVER:
                self._same[tenant, model] = made.only
        return made

    def _forget(self) -> None:
        self._kept.clear()
        self._same.clear()
        self._standing_in.clear()
