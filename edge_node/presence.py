"""That this edge worker is there, and how it sees each region: its heartbeats."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from random import Random

from edge_node.forward.tunnels import Tunnels
from edge_node.settings import EdgeSettings
from runtime.clock import Clock
from runtime.identity import Identity
from runtime.metrics import Sample
from topology.wire.ladder_reports import StandingReport
from topology.wire.membership_client import MembershipClient, Report


class Presence:
    """Use within one event loop: `start()`, then `await close()`. `ready`: whether this worker
    has a configuration to serve by; `standings`: where it stands on the ladder."""

    def __init__(
        self,
        settings: EdgeSettings,
        worker: int,
        identity: Identity,
        tunnels: Tunnels,
        ready: Callable[[], bool],
        clock: Clock,
        rng: Random,
        standings: Callable[[], Sequence[StandingReport]] = tuple,
    ) -> None:
        self._tunnels = tunnels
        self._ready = ready
        self._standings = standings
        self._addresses = (f"{settings.host}:{settings.port}",)
        self._client = MembershipClient(
            settings.node_id(worker),
            settings.control_plane,
            lambda: identity,
            self.report,
            clock,
            rng,
        )

    def start(self) -> None:
        self._client.start()

    async def close(self) -> None:
        """Leave: this edge's view counts no more, and nobody waits for its lease to end."""
        await self._client.close()

    def report(self) -> Report:
        views = self._tunnels.views()
        return Report(
            healthy=self._ready() and any(view.reachable for view in views.values()),
            addresses=self._addresses,
            regions=views,
            paths=self._tunnels.seen(),
            path_events=tuple(self._tunnels.log.events),
            ladder=self._standings(),
        )

    def samples(self) -> Iterable[Sample]:
        status = self._client.status
        name = "tradewind_edge_"
        yield Sample(name + "heartbeats_taken", "A replica takes its heartbeats.", status.connected)
        yield Sample(name + "registered", "It is in the registry.", status.registered)
