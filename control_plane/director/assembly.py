"""Everything of a replica that has to do with directing, put together.

Every replica takes in load reports and heartbeats and tells them to the director; the elected one
is the director.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from random import Random
from typing import Any

from control_plane.catalog import Catalog
from control_plane.changes.apply import Changes
from control_plane.changes.rollouts import Rollouts
from control_plane.directives.known import Directives
from control_plane.directives.observed import Observed
from control_plane.director.election import Election
from control_plane.director.feed import Feeds, FeedService
from control_plane.director.load_reports import LoadReports
from control_plane.director.local import Local
from control_plane.director.loop import Director
from control_plane.discovery.server import DiscoveryServer
from control_plane.membership.base import Registry
from control_plane.membership.service import MembershipService
from control_plane.membership.settings import MembershipSettings
from control_plane.replicas import Replicas
from control_plane.store.base import Store
from runtime.clock import Clock
from runtime.identity import Identity
from runtime.metrics import Sample
from topology.wire.gen.tradewind.v1 import replicas_pb2_grpc


class Direction:
    """Use within one event loop: `add_to` a server, `start(address)`, `await close()`."""

    def __init__(
        self,
        replica: str,
        store: Store,
        catalog: Catalog,
        changes: Changes,
        rollouts: Rollouts,
        directives: Directives,
        discovery: DiscoveryServer,
        registry: Registry,
        membership: MembershipSettings,
        election_ttl_s: float,
        identity: Callable[[], Identity],
        clock: Clock,
        rng: Random,
    ) -> None:
        self.election = Election(store, replica, election_ttl_s, clock, rng)
        self.replicas = Replicas(store, replica, "", clock, rng)
        self.registry = registry
        self.loads = LoadReports(clock)
        self.heartbeats = MembershipService(
            registry,
            clock,
            membership,
            regions=lambda: catalog.view.snapshot.regions.keys(),
            rng=rng,
        )
        self.local = Local(self.loads, self.heartbeats, discovery, catalog, clock)
        self._feed = FeedService(replica, self.local.observe, clock)
        self.director = Director(
            replica,
            store,
            catalog,
            changes,
            rollouts,
            directives,
            self.election,
            self.replicas,
            registry,
            self.local,
            Feeds(identity, clock, rng),
            clock,
        )

    def add_to(self, server: Any) -> None:
        """Register on a `grpc.aio` server what nodes and other replicas ask for."""
        self.loads.add_to(server)
        self.heartbeats.add_to(server)
        replicas_pb2_grpc.add_ReplicasServicer_to_server(  # type: ignore[no-untyped-call]
            self._feed, server
        )

    def start(self, address: str) -> None:
        """`address`: where other replicas reach this one, host:port."""
        self.replicas.address = address
        self.registry.start()
        self.heartbeats.start()
        self.replicas.start()
        self.election.start()
        self.director.start()

    async def close(self) -> None:
        """Hand over first, so that another director need not wait for a lease to end."""
        await self.director.close()
        await asyncio.gather(self.election.close(), self.replicas.close())
        await self.heartbeats.close()
        await self.registry.close()

    def observe(self) -> Observed:
        """What this replica sees by itself."""
        return self.local.observe()

    def samples(self) -> Iterable[Sample]:
        yield from self.election.samples()
        yield from self.director.samples()
        yield from self.heartbeats.samples()
        yield from self.loads.samples()
