"""A geo-DNS process: the parts, put together. `tradewind dns run` calls `run`.

Snapshots come in from the control plane or from disk; health is asked here. Either makes a new
view, which this process and its workers answer from at once. Nothing on the path of a query
waits for any of them.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from typing import Protocol

import uvloop

from control_plane.geodns.answers import Answerer
from control_plane.geodns.exposition import Exposition, Page
from control_plane.geodns.figures import figures_of, labelled, total
from control_plane.geodns.lookup import View
from control_plane.geodns.places import open_locator
from control_plane.geodns.probes import Prober
from control_plane.geodns.server import DnsServer, join_host_ports
from control_plane.geodns.settings import DnsSettings
from control_plane.geodns.workers import Workers
from runtime import logs, metrics
from runtime.clock import Clock, SystemClock
from runtime.errors import TradewindError
from runtime.identity import Identity
from runtime.identity_watch import IdentityWatch
from runtime.metrics import Metrics, Sample
from runtime.shutdown import Shutdown
from topology.snapshot import Snapshot
from topology.wire import last_good
from topology.wire.ads_client import AdsClient

log = logs.get("geodns")

OnSnapshot = Callable[[Snapshot], None]


class SnapshotSource(Protocol):
    """Calls its `OnSnapshot` with each snapshot, on the loop, from `start()` to `close()`."""

    def start(self) -> None: ...

    async def close(self) -> None: ...

    def samples(self) -> Iterable[Sample]: ...

    @property
    def connected(self) -> bool: ...


class DiskSource:
    """The snapshot in a file, once: DNS without a control plane."""

    def __init__(self, path: Path, on_snapshot: OnSnapshot) -> None:
        self._path = path
        self._on_snapshot = on_snapshot
        self.connected = False

    def samples(self) -> Iterable[Sample]:
        return ()

    def start(self) -> None:
        """Raises `DamagedSnapshot`, or `TradewindError` where there is no file."""
        snapshot = last_good.load(self._path)
        if snapshot is None:
            raise TradewindError(
                f"there is no snapshot in {self._path}",
                hint="set `control_plane` and `identity`, or `last_good` to a saved snapshot",
            )
        self._on_snapshot(snapshot)

    async def close(self) -> None:
        pass


class ControlPlaneSource:
    """Follows the control plane, starting from the last good snapshot on disk."""

    def __init__(
        self, settings: DnsSettings, on_snapshot: OnSnapshot, clock: Clock, rng: Random
    ) -> None:
        """Raises `IdentityError`."""
        if settings.identity is None:
            raise TradewindError(
                "`control_plane` is set, but no `identity`",
                hint="`tradewind pki issue dns/<name>` makes one",
            )
        self._identities = IdentityWatch(Identity.load(settings.identity), clock)
        self._client = AdsClient(
            settings.node_id,
            settings.control_plane,
            self._identities.current,
            settings.last_good,
            on_snapshot,
            clock,
            rng,
        )

    def start(self) -> None:
        self._identities.start()
        self._client.start()

    async def close(self) -> None:
        await self._client.close()
        await self._identities.close()

    def samples(self) -> Iterable[Sample]:
        return self._identities.samples()

    @property
    def connected(self) -> bool:
        return self._client.status.connected


SourceFactory = Callable[[DnsSettings, OnSnapshot, Clock, Random], SnapshotSource]


def open_source(
    settings: DnsSettings, on_snapshot: OnSnapshot, clock: Clock, rng: Random
) -> SnapshotSource:
    """The source that the settings ask for."""
    if settings.control_plane or settings.last_good is None:
        return ControlPlaneSource(settings, on_snapshot, clock, rng)
    return DiskSource(settings.last_good, on_snapshot)


class DnsService:
    """Everything of one process, from `start()` to `close()`."""

    def __init__(
        self,
        settings: DnsSettings,
        clock: Clock,
        rng: Random,
        source: SourceFactory = open_source,
    ) -> None:
        """Raises `TradewindError` where files that the settings name cannot be used."""
        locator = open_locator(settings.prefix_table, settings.mmdb, settings.prefixes)
        self.answerer = Answerer(locator, settings.answers)
        self.server = DnsServer(
            self.answerer, settings.listen, settings.server, share_port=settings.workers > 1
        )
        self.prober = Prober(settings.health, self._health_changed, clock, rng)
        self.workers = Workers(settings, rng)
        self.metrics = Metrics()
        self.metrics.watch(self._samples)
        self.exposition: Exposition | None = None
        if settings.metrics is not None:
            pages = {"/metrics": self._metrics, "/healthz": _alive, "/readyz": self._ready}
            self.exposition = Exposition(settings.metrics, pages)
        self._source = source(settings, self._new_snapshot, clock, rng)
        self.metrics.watch(self._source.samples)

    async def start(self, shutdown: Shutdown) -> None:
        """Start the parts, each closed by `shutdown` in the reverse order."""
        await self.server.start()
        shutdown.add("server", self.server.close)
        self.workers.start(tuple(join_host_ports([address]) for address in self.server.addresses))
        shutdown.add("workers", self.workers.close)
        if self.exposition is not None:
            await self.exposition.start()
            shutdown.add("metrics", self.exposition.close)
        self._source.start()
        shutdown.add("snapshots", self._source.close)
        self.prober.start()
        shutdown.add("edge health", self.prober.close)
        # What lives until the end need not be looked at by each collection of garbage.
        gc.collect()
        gc.freeze()
        log.info("serving DNS", addresses=join_host_ports(self.server.addresses))

    def _new_snapshot(self, snapshot: Snapshot) -> None:
        """Raises `InvalidZone`, which refuses the snapshot; then the old one stays."""
        view = View.of(snapshot, ())
        self.prober.follow(snapshot.edges)
        self._replace(view.with_health(self.prober.board.healthy))
        log.info("new snapshot", revision=snapshot.revision, zones=len(snapshot.zones))

    def _health_changed(self) -> None:
        view = self.answerer.view
        if view is not None:
            self._replace(view.with_health(self.prober.board.healthy))

    def _replace(self, view: View) -> None:
        self.answerer.replace(view)
        self.workers.replace(view)

    def _metrics(self) -> Page:
        return "200 OK", metrics.CONTENT_TYPE, self.metrics.expose()

    def _ready(self) -> Page:
        if self.answerer.view is None:
            return "503 Service Unavailable", "text/plain", b"no snapshot yet\n"
        return "200 OK", "text/plain", b"ready\n"

    def _samples(self) -> Iterable[Sample]:
        view = self.answerer.view
        figures = total((figures_of(self.answerer, self.server), self.workers.figures))
        for kind, rcode, count in labelled(figures.queries):
            yield Sample(
                "tradewind_dns_queries_total",
                "Queries answered.",
                count,
                {"type": kind, "rcode": rcode},
            )
        for name, what in _COUNTERS.items():
            value = figures.counters.get(name, 0)
            yield Sample(f"tradewind_dns_{name}_total", what, value)
        for name in ("hot", "tailored", "origins"):
            labels = {"cache": name}
            held = figures.gauges.get(name, 0)
            yield Sample("tradewind_dns_cache_entries", "Entries held.", held, labels)
            limit = figures.gauges.get(f"{name}_limit", 0)
            yield Sample("tradewind_dns_cache_limit", "Most entries.", limit, labels)
        connections = figures.gauges.get("tcp", 0)
        yield Sample("tradewind_dns_tcp_connections", "Open TCP connections.", connections)
        restarts = self.workers.restarts
        yield Sample("tradewind_dns_worker_restarts_total", "Workers started again.", restarts)
        revision = view.snapshot.revision if view is not None else 0
        yield Sample("tradewind_dns_snapshot_revision", "Revision answered from.", revision)
        connected = self._source.connected
        yield Sample("tradewind_dns_control_plane_up", "Connected to a replica.", connected)
        for edge, state in self.prober.board.edges.items():
            labels = {"edge": edge}
            yield Sample("tradewind_dns_edge_healthy", "Edge answered.", state.healthy, labels)


_COUNTERS = {
    "hot_misses": "Datagrams that the packet cache did not hold.",
    "failures": "Exceptions that became SERVFAIL.",
    "generations": "Times that a full cache forgot its older half.",
    "udp_dropped": "Answers that the kernel did not take.",
    "tcp_evicted": "Idle connections that made room for a new one.",
    "tcp_timed_out": "Connections that were idle, or unread, for too long.",
}


def _alive() -> Page:
    return "200 OK", "text/plain", b"alive\n"


async def serve(settings: DnsSettings, source: SourceFactory = open_source) -> None:
    """Serve until SIGINT or SIGTERM. Raises `TradewindError` where it cannot start."""
    shutdown = Shutdown()
    service = DnsService(settings, SystemClock(), Random(), source)
    try:
        await service.start(shutdown)
        await shutdown.wait()
    finally:
        await shutdown.close()


def run(settings: DnsSettings) -> None:
    """The whole life of the process."""
    logs.configure(settings.node_id, settings.log_level)
    uvloop.run(serve(settings))
