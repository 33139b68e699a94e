"""What `Status` tells beyond the store, the catalog and discovery. Every part may be missing.

A part that is missing is left out of the answer, and one that is down says so itself: `Status`
reads what each holds in memory and waits for nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from msgspec import Struct

from control_plane.director.election import Leader, Term
from control_plane.director.observed import Member
from control_plane.director.state import Outlook, State
from control_plane.store.base import StoreStatus
from topology.directive import Directive
from topology.wire.gen.tradewind.v1 import admin_pb2 as pb


class ElectionSource(Protocol):
    """`control_plane.director.election.Election`."""

    @property
    def leading(self) -> Term | None: ...

    @property
    def leader(self) -> Leader | None: ...


class DirectivesSource(Protocol):
    """`control_plane.director.directives.Directives`."""

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


NO_SOURCES = StatusSources()
