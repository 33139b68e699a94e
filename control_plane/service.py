"""A control-plane replica: the parts, put together, in one process and one event loop.

Any number of replicas run beside each other on one store. Each serves discovery, the admin API
and the nodes' reports alike; between writers the store's transactions decide. One of them is
elected to be the director as well.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from random import Random

import grpc.aio

from control_plane.admin.service import AdminService
from control_plane.admin.status_sources import StatusSources
from control_plane.catalog import Catalog
from control_plane.changes.apply import Changes
from control_plane.changes.rollouts import Rollouts
from control_plane.directives.known import Directives
from control_plane.director.assembly import Direction
from control_plane.discovery.proxies.service import ProxyDiscovery
from control_plane.discovery.server import DiscoveryServer
from control_plane.geodns.exposition import Exposition, Page
from control_plane.geodns.places import open_locator
from control_plane.membership.backends import open_registry
from control_plane.settings import ControlSettings
from control_plane.store.base import Store
from control_plane.store.etcd import EtcdStore
from control_plane.store.memory import MemoryStore
from runtime import logs, metrics
from runtime.clock import Clock, SystemClock
from runtime.errors import TradewindError
from runtime.identity import Identity
from runtime.identity_watch import IdentityWatch
from runtime.metrics import Metrics, Sample
from runtime.shutdown import Shutdown
from topology.wire.channel import server_credentials, server_options
from topology.wire.gen.tradewind.v1 import admin_pb2_grpc

log = logs.get("control-plane")

ROLE = "control"
LAST_GOOD = "last-good.snapshot"
LAST_DIRECTIVES = "last-good.directives"


class CannotServe(TradewindError):
    """The replica cannot start as it is set up."""


class Replica:
    """One replica on `store`, from `start()` to `close()`. `port` is known once it has started."""

    def __init__(self, settings: ControlSettings, store: Store, clock: Clock, rng: Random) -> None:
        """Raises `IdentityError`, `CannotServe`, and what `open_locator` raises."""
        self._settings = settings
        self.identities = IdentityWatch(Identity.load(settings.identity), clock)
        self._identity = self.identities.current
        if self._identity.principal.role != ROLE:
            raise CannotServe(
                f"{self._identity.principal} is no identity for a control-plane replica",
                hint=f"`tradewind pki issue {ROLE}/<name>` makes one",
            )
        self.name = self._identity.principal.name
        self.store = store
        kept = settings.data_dir / LAST_GOOD if settings.data_dir else None
        self.catalog = Catalog(store, kept, clock, rng)
        self.directives = Directives(
            store, settings.data_dir / LAST_DIRECTIVES if settings.data_dir else None, rng
        )
        self.changes = Changes(
            store,
            self.catalog,
            clock,
            self.name,
            outlook=lambda: self.directives.outlook,
            state=lambda: self.directives.state,
            keep=settings.history_kept,
        )
        self.discovery = DiscoveryServer(
            self.catalog, self.name, clock, settings.discovery, self.directives
        )
        self.proxies = ProxyDiscovery(
            self.catalog, self.directives, self.name, clock, settings.discovery
        )
        self.discovery.proxies = self.proxies
        self.rollouts = Rollouts(
            store, self.catalog, self.changes, clock, self.name, lambda: self.direction.observe()
        )
        self.direction = Direction(
            self.name,
            store,
            self.catalog,
            self.changes,
            self.rollouts,
            self.directives,
            self.discovery,
            open_registry(
                settings.membership,
                store,
                clock,
                rng,
                replica=self.name,
                listen=settings.advertise or settings.listen,
                ready=lambda: self.catalog.view.ready,
            ),
            settings.membership,
            settings.election_ttl_s,
            lambda: self._identity,
            clock,
            rng,
        )
        self.metrics = Metrics()
        for source in (
            self.discovery,
            self.proxies,
            self.directives,
            self.direction,
            self.identities,
        ):
            self.metrics.watch(source.samples)
        self.metrics.watch(self._samples)
        self.port = 0
        locator = open_locator(settings.prefix_table, settings.mmdb, settings.prefixes)
        self._admin = AdminService(
            self.name,
            store,
            self.catalog,
            self.changes,
            self.discovery,
            locator,
            clock,
            StatusSources(
                election=self.direction.election,
                directives=self.directives,
                replicas=self.direction.replicas,
                registry=self.direction.registry,
                rollouts=self.rollouts,
                observe=self.direction.observe,
                paths=self.direction.heartbeats.paths,
                ladders=self.direction.heartbeats.ladders,
            ),
        )
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Serve, whether the store answers or not."""
        self.identities.start()
        self.catalog.start()
        self.directives.start()
        self.discovery.start()
        self.proxies.start()
        self._server = grpc.aio.server(options=server_options())
        admin_pb2_grpc.add_AdminServicer_to_server(  # type: ignore[no-untyped-call]
            self._admin, self._server
        )
        self.discovery.add_to(self._server)
        self.proxies.add_to(self._server)
        self.direction.add_to(self._server)
        self.port = _listen(self._server, self._settings.listen, self._identity)
        await self._server.start()
        self.direction.start(self._advertised())
        log.info("serving", replica=self.name, listen=self._settings.listen, port=self.port)

    async def close(self) -> None:
        """End streams with a word, let calls in progress finish, let go of the store."""
        await self.direction.close()
        await self.proxies.close()
        await self.discovery.close()
        if self._server is not None:
            await self._server.stop(self._settings.shutdown_grace_ms / 1e3)
        await self.directives.close()
        await self.catalog.close()
        await self.store.close()
        await self.identities.close()

    def _advertised(self) -> str:
        settings = self._settings
        if settings.advertise is not None:
            return settings.advertise
        return f"{settings.listen.rpartition(':')[0]}:{self.port}"

    def pages(self) -> dict[str, Callable[[], Page]]:
        return {"/metrics": self._metrics_page, "/healthz": _alive, "/readyz": self._ready_page}

    def _metrics_page(self) -> Page:
        return "200 OK", metrics.CONTENT_TYPE, self.metrics.expose()

    def _ready_page(self) -> Page:
        if not self.catalog.view.ready:
            return "503 Service Unavailable", "text/plain", b"nothing to serve yet\n"
        return "200 OK", "text/plain", b"ready\n"

    def _samples(self) -> Iterable[Sample]:
        view, up = self.catalog.view, self.store.status.available
        yield Sample("tradewind_control_store_up", "The store answers", up)
        stale = view.stale_since_s is not None
        yield Sample("tradewind_control_snapshot_stale", "Served without the store", stale)
        revision = view.snapshot.revision
        yield Sample("tradewind_control_snapshot_revision", "The snapshot's revision", revision)
        under_way = view.rollout is not None and view.rollout.under_way
        share = view.rollout.percent if view.rollout is not None and under_way else 100.0
        yield Sample("tradewind_control_rollout_percent", "Nodes that have the change", share)
        held = len(view.snapshot)
        yield Sample("tradewind_control_resources", "Resources in the snapshot", held)
        failed = self.catalog.disk_failures + self.directives.disk_failures
        yield Sample("tradewind_control_disk_failures_total", "Writes to disk that failed", failed)
        behind = self.catalog.disk_behind
        yield Sample("tradewind_control_disk_behind", "The disk lacks what is served", behind)
        unusable = len(view.problems)
        yield Sample("tradewind_control_problems", "Unusable things in the store", unusable)


def open_store(settings: ControlSettings, clock: Clock, rng: Random) -> Store:
    """The store that the settings ask for; raises `InvalidDocument`."""
    if settings.etcd is None:
        log.warning("no etcd is set: the configuration lives in this process's memory")
        return MemoryStore(clock)
    return EtcdStore(settings.etcd, clock, rng)


async def run(settings: ControlSettings) -> None:
    """Serve until SIGINT or SIGTERM. Raises `TradewindError` where it cannot start."""
    shutdown = Shutdown(settings.shutdown_grace_ms / 1e3 + 2.0)
    clock, rng = SystemClock(), Random()
    replica = Replica(settings, open_store(settings, clock, rng), clock, rng)
    try:
        shutdown.add("replica", replica.close)
        await replica.start()
        if settings.metrics is not None:
            exposition = Exposition(settings.metrics, replica.pages())
            await exposition.start()
            shutdown.add("metrics", exposition.close)
        # What lives until the end need not be looked at by each collection of garbage.
        gc.collect()
        gc.freeze()
        # What a push to thousands of nodes makes is gone when the push is: at Python's default of
        # 700 objects a tenth of its CPU went into looking for cycles in it.
        gc.set_threshold(50_000, 20, 100)
        await shutdown.wait()
    finally:
        await shutdown.close()
    log.info("stopped", replica=replica.name)


def _listen(server: grpc.aio.Server, address: str, identity: Identity) -> int:
    try:
        return server.add_secure_port(address, server_credentials(identity))
    except RuntimeError as error:
        raise CannotServe(
            f"cannot listen on {address}: {error}",
            hint="is another replica running there? `listen` in the settings names the address",
        ) from error


def _alive() -> Page:
    return "200 OK", "text/plain", b"alive\n"
