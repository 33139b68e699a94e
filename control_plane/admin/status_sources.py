"""What `Status` tells beyond the store, the catalog and discovery. Every part may be missing.

A part that is missing is left out of the answer, and one that is down says so itself: `Status`
reads what each holds in memory and waits for nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from msgspec import Struct

from control_plane.admin.edge_paths import seen_by
from control_plane.admin.explain import Told
from control_plane.directives.observed import Member, Observed
from control_plane.directives.state import Outlook, State
from control_plane.director.election import Leader, Term
from control_plane.membership.ladder import NodeLadder
from control_plane.membership.paths import NodePaths
from control_plane.store.base import StoreStatus
from topology.directive import Directive
from topology.routing import RegionView
from topology.wire.gen.tradewind.v1 import admin_pb2 as pb


class ElectionSource(Protocol):
    """`control_plane.director.election.Election`."""

    @property
    def leading(self) -> Term | None: ...

    @property
    def leader(self) -> Leader | None: ...


class DirectivesSource(Protocol):
    """`control_plane.directives.known.Directives`."""

    state: State
    outlook: Outlook
    followed: bool

    def directive_for(self, node: str) -> Directive: ...


class ReplicasSource(Protocol):
    """`control_plane.replicas.Replicas`."""

    alive: dict[str, str]


class RegistrySource(Protocol):
    """`control_plane.membership.base.Registry`."""

    @property
    def backend(self) -> str: ...

    @property
    def members(self) -> Mapping[str, Member]: ...

    @property
    def status(self) -> StoreStatus: ...


class RolloutSource(Protocol):
    """`control_plane.changes.rollouts.Rollouts`, as far as the admin API needs it."""

    def status(self) -> pb.Rollout: ...

    async def control(self, action: str, reason: str, author: str) -> pb.Rollout: ...


class StatusSources(Struct, frozen=True, kw_only=True):
    """The parts of a replica that the admin API reads."""

    election: ElectionSource | None = None
    directives: DirectivesSource | None = None
    replicas: ReplicasSource | None = None
    registry: RegistrySource | None = None
    rollouts: RolloutSource | None = None
    observe: Callable[[], Observed] | None = None  # what this replica sees of the nodes
    paths: Callable[[], Mapping[str, NodePaths]] | None = None  # and of their ways to regions
    ladders: Callable[[], Mapping[str, NodeLadder]] | None = None  # and where they stand

    def told(self, edge: str) -> Told:
        """What is known here of an edge: for `explain`."""
        heard = self.paths().values() if self.paths is not None else ()
        seen = seen_by(node for node in heard if node.edge == edge)
        views = seen.views or self._reached(edge)
        if self.directives is None:
            return Told(views=views, why=seen.why, notes=seen.differ)
        directive = self.directives.directive_for(f"edge/{edge}")
        prices = self.directives.outlook.prices
        return Told(directive, views, prices, seen.why, seen.differ)

    def _reached(self, edge: str) -> dict[str, RegionView]:
        """Where nothing is heard of its ways."""
        views: dict[str, RegionView] = {}
        reports = self.observe().edges.values() if self.observe is not None else ()
        for report in reports:
            # A load report alone says nothing of reachability: the heartbeats go elsewhere.
            heard = report.edge == edge and report.seen_at_s > 0.0
            for region, seen in report.regions.items() if heard else ():
                held = views.get(region, RegionView(False))
                both = [ms for ms in (held.rtt_ms, seen.rtt_ms) if ms is not None]
                reachable = held.reachable or seen.reachable
                views[region] = RegionView(reachable, min(both, default=None))
        return views


NO_SOURCES = StatusSources()
