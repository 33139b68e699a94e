"""One edge worker: everything it is made of, in one process and one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from random import Random

from edge_node.agent import Agent, Standing
from edge_node.cache.disk import DiskCache
from edge_node.errors import WrongIdentity
from edge_node.forward.path_samples import path_samples
from edge_node.forward.tunnels import MakeTunnel, OnChange, Tunnels
from edge_node.front.app import EdgeApp
from edge_node.front.listener import Listener
from edge_node.presence import Presence
from edge_node.settings import EdgeSettings
from runtime import logs
from runtime.clock import Clock, SystemClock
from runtime.identity import Identity, Principal
from runtime.identity_watch import IdentityWatch
from runtime.shutdown import Shutdown
from topology.directive import Directive
from topology.overlay.tunnel import Tunnel
from topology.overlay.via import Via
from topology.snapshot import Snapshot
from topology.wire.load_reporter import LoadReporter

log = logs.get("edge")

# A request makes some hundred objects that reference counting frees; the collector need not look
# at each of them. Measured on forwarded requests: 6% less CPU than with Python's 700, 10, 10.
GC_THRESHOLDS = (20_000, 20, 50)
# A worker that comes back next to others takes its share of the port's connections at once: it
# listens when it can serve them, or after this long to say on /readyz why it cannot.
LISTEN_AFTER_S = 2.0
# Closing tunnels and saving the snapshot come after the requests' own grace.
CLOSING_S = 3.0


class EdgeWorker:
    """Build it in a running loop; `start`, then `close` once."""

    def __init__(self, settings: EdgeSettings, worker: int, clock: Clock, rng: Random) -> None:
        loop = asyncio.get_running_loop()
        self.identities = IdentityWatch(Identity.load(settings.identity), clock)
        identity = self.identities.current
        expected = Principal("edge", settings.name)
        if identity.principal != expected:
            raise WrongIdentity(identity.principal, expected)
        self._settings = settings
        self._grace_s = settings.shutdown_grace_ms / 1000
        make = _tunnel_maker(settings, identity, clock, rng)
        self.tunnels = Tunnels(settings.name, worker, make, clock, rng)
        self.app = EdgeApp(
            settings.name,
            self.tunnels,
            clock,
            rng,
            loop.time,
            body_timeout_s=settings.body_timeout_ms / 1000,
            access_log=settings.log_level == "debug",
        )
        self.disk = _disk_cache(settings, clock)
        self.app.serving.disk = self.disk
        self.agent = Agent(
            settings, worker, identity, self.use, clock, rng, self.direct, self._stand
        )
        self.reporter = LoadReporter(
            settings.node_id(worker),
            settings.control_plane,
            lambda: identity,
            self.app.figures.load,
            lambda: self.app.quotas.asked,
            clock,
            rng,
        )
        self.presence = Presence(
            settings, worker, identity, self.tunnels, lambda: self.app.serving.ready, clock, rng,
            lambda: self.app.entry.reports(clock.wall()),
        )  # fmt: skip
        self._listener = Listener(
            self.app,
            settings.host,
            settings.port,
            tls=settings.tls,
            http2=settings.http2,
            max_connections=settings.max_connections,
        )
        self.identities.on_change(self.tunnels.renew)
        self.app.metrics.watch(self.identities.samples)
        self.app.metrics.watch(self.agent.samples)
        self.app.metrics.watch(self.presence.samples)
        self.app.metrics.watch(self.reporter.samples)
        if self.disk is not None:
            self.app.metrics.watch(self.disk.samples)
        self.app.metrics.watch(lambda: path_samples(self.tunnels))

    def use(self, snapshot: Snapshot) -> None:
        """Follow a snapshot, whole."""
        self.app.use(snapshot)
        self.tunnels.use(snapshot)
        if self._settings.name not in snapshot.edges:
            log.warning("no EdgeSite has this edge's name", name=self._settings.name)
        log.info("configuration", revision=snapshot.revision, regions=len(snapshot.regions))

    def direct(self, directive: Directive) -> None:
        """Follow what the director tells this worker."""
        self.app.direct(directive)

    def _stand(self, standing: Standing) -> None:
        serving = self.app.serving
        policy = serving.snapshot.policy.staleness
        serving.staleness.look(policy, standing.confirmed_at, standing.now)
        if standing.settled:
            self.app.confirm()

    async def start(self) -> None:
        """Take up the last good configuration, reach the regions, and only then listen."""
        self.identities.start()
        if self.disk is not None:
            self.disk.start()
        self.agent.start()
        self.presence.start()
        self.reporter.start()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.tunnels.all_connected(), LISTEN_AFTER_S)
        self._listener.start()
        log.info("listening", host=self._settings.host, port=self._settings.port)

    async def close(self) -> None:
        """Finish what is under way, within the grace; then let everything go."""
        self._listener.stop_accepting()
        await self.presence.close()
        await self.reporter.close()
        await self.app.drain(self._grace_s)
        await self._listener.stopped(1.0)
        await self.tunnels.close()
        await self.agent.close()
        if self.disk is not None:
            await self.disk.close()
        await self.identities.close()


def _disk_cache(settings: EdgeSettings, clock: Clock) -> DiskCache | None:
    if not settings.disk_cache.enabled:
        return None
    return DiskCache(settings.disk_cache_dir, settings.disk_cache.max_bytes, clock)


def _tunnel_maker(
    settings: EdgeSettings, identity: Identity, clock: Clock, rng: Random
) -> MakeTunnel:
    def make(
        region: str, address: str, on_change: OnChange, /, *, via: Via | None, turn: int
    ) -> Tunnel:
        return Tunnel(
            region,
            address,
            identity.newest,
            clock,
            settings.overlay,
            rng=rng,
            via=via,
            turn=turn,
            on_change=on_change,
        )

    return make


async def run(settings: EdgeSettings, worker: int = 0, shutdown: Shutdown | None = None) -> None:
    """Run one worker until SIGTERM or SIGINT."""
    grace_s = settings.shutdown_grace_ms / 1000 + CLOSING_S
    shutdown = shutdown or Shutdown(grace_s)
    edge = EdgeWorker(settings, worker, SystemClock(), Random())
    await edge.start()
    shutdown.add("edge", edge.close)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    await shutdown.wait()
    log.info("stopped")
