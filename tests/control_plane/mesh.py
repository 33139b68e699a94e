"""A small world with real sockets: a CA, identities, replicas on a store, and nodes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from control_plane.changes.plan import Wanted
from control_plane.discovery.server import DiscoverySettings
from control_plane.pki import create_ca, identity_files, issue
from control_plane.service import Replica
from control_plane.settings import ControlSettings
from control_plane.store.base import Store
from runtime.clock import SystemClock
from runtime.identity import Identity, IdentityFiles, Principal
from topology import resources as res
from topology.directive import Directive
from topology.geo import PrefixRow
from topology.resources import Resource
from topology.snapshot import Snapshot
from topology.wire.ads_client import AdsClient, AdsSettings

T = TypeVar("T")

ROWS = (
    PrefixRow("198.18.1.0/24", "Tokyo", 35.68, 139.69),
    PrefixRow("198.18.4.0/24", "London", 51.51, -0.13),
)
QUICK = AdsSettings(connect_timeout_ms=2_000, backoff_min_ms=20, backoff_max_ms=200)


class Mesh:
    """A CA in a folder; identities are issued when first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        create_ca(folder / "ca")

    def directory(self, principal: str) -> Path:
        out = self.folder / principal.replace("/", "-")
        if not out.exists():
            role, name = principal.split("/")
            issue(self.folder / "ca", Principal(role, name), out)
        return out

    def files(self, principal: str) -> IdentityFiles:
        return identity_files(self.directory(principal))

    def identity(self, principal: str) -> Identity:
        return Identity.load(self.files(principal))


@asynccontextmanager
async def serving(
    mesh: Mesh,
    store: Store,
    name: str = "cp-1",
    data_dir: Path | None = None,
    discovery: DiscoverySettings | None = None,
    listen: str = "127.0.0.1:0",
) -> AsyncIterator[Replica]:
    """A replica on a free port."""
    settings = ControlSettings(
        identity=mesh.files(f"control/{name}"),
        listen=listen,
        data_dir=data_dir,
        prefixes=ROWS,
        discovery=discovery or DiscoverySettings(debounce_ms=20),
        shutdown_grace_ms=200,
    )
    replica = Replica(settings, store, SystemClock(), Random(1))
    await replica.start()
    try:
        yield replica
    finally:
        await replica.close()


@asynccontextmanager
async def node(
    mesh: Mesh,
    principal: str,
    endpoints: Sequence[str],
    last_good: Path | None = None,
    on_snapshot: Callable[[Snapshot], None] = lambda _: None,
    node_id: str | None = None,
    on_directive: Callable[[Directive], None] | None = None,
) -> AsyncIterator[AdsClient]:
    """A node that follows `endpoints`."""
    client = AdsClient(
        node_id or principal,
        endpoints,
        mesh.identity(principal),
        last_good,
        on_snapshot,
        SystemClock(),
        Random(2),
        QUICK,
        on_directive,
    )
    client.start()
    try:
        yield client
    finally:
        await client.close()


async def until(what: Callable[[], object], timeout_s: float = 8.0) -> None:
    """Wait until `what()` is true, or fail."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while not what():
        assert loop.time() < deadline, "waited in vain"
        await asyncio.sleep(0.01)


def at(replica: Replica) -> str:
    return f"127.0.0.1:{replica.port}"


def resource(kind: str, name: str, **spec: Any) -> Resource:
    return res.parse({"kind": kind, "name": name, "spec": spec}, f"{kind}/{name}")


def region(name: str, jurisdiction: str = "SG", **spec: Any) -> Resource:
    place = {"city": name.title(), "latitude": 1.0, "longitude": 103.0}
    rest = {"jurisdiction": jurisdiction, "cores": ["127.0.0.1:4433"], "capacity_tokens_per_s": 100}
    return resource("Region", name, **(place | rest | spec))


def world() -> list[Resource]:
    """Two regions, two edges, a model, a route, three tenants and a zone."""
    return [
        region("singapore", "SG"),
        region("frankfurt", "EU", latitude=50.1, longitude=8.7),
        _edge("tokyo", 35.68, 139.69),
        _edge("london", 51.51, -0.13),
        resource("Model", "smol", regions=["singapore", "frankfurt"], context_tokens=2048),
        resource("Route", "all", models=["*"], tenants=["*"], regions=["singapore", "frankfurt"]),
        resource("Tenant", "acme", tier="vip", api_keys=["sha256:" + "a" * 64]),
        resource("Tenant", "globex", api_keys=["sha256:" + "b" * 64]),
        resource("Tenant", "eurobank", residency=["EU"], api_keys=["sha256:" + "c" * 64]),
        resource(
            "Zone",
            "tradewind.test",
            contact="hostmaster@tradewind.test",
            nameservers=[{"name": "ns1.tradewind.test", "addresses": ["127.0.0.1"]}],
            names=[{"name": "api", "edges": ["*"]}],
        ),
    ]


def _edge(name: str, latitude: float, longitude: float) -> Resource:
    return resource(
        "EdgeSite",
        name,
        city=name.title(),
        latitude=latitude,
        longitude=longitude,
        jurisdiction="JP",
        addresses=["127.0.0.1"],
    )


class Background:
    """A replica in a thread of its own, with nodes: for the command line, which blocks."""

    def __init__(self, mesh: Mesh, store: Store, data_dir: Path | None = None) -> None:
        self._mesh = mesh
        self._store = store
        self._data_dir = data_dir
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._stack = AsyncExitStack()
        self.replica: Replica

    def __enter__(self) -> Background:
        self._thread.start()
        started = serving(self._mesh, self._store, data_dir=self._data_dir)
        self.replica = self.call(self._stack.enter_async_context(started))
        return self

    def __exit__(self, *_: object) -> None:
        self.call(self._stack.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def endpoint(self) -> str:
        return at(self.replica)

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the replica's loop and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    def do(self, what: Callable[[], T]) -> T:
        """Call a function on the replica's loop and wait for what it returns."""

        async def call() -> T:
            return what()

        return self.call(call())

    def keep(self, context: AbstractAsyncContextManager[T]) -> T:
        """Enter a context on the replica's loop, until the end."""
        return self.call(self._stack.enter_async_context(context))

    def apply(self, *puts: Resource) -> int:
        return self.call(self.replica.changes.apply(Wanted(puts=puts), "operator/setup")).revision

    def node(
        self, principal: str, on_snapshot: Callable[[Snapshot], None] = lambda _: None
    ) -> AdsClient:
        """A node that follows the replica until the end."""

        async def enter() -> AdsClient:
            following = node(self._mesh, principal, [self.endpoint], None, on_snapshot)
            client = await self._stack.enter_async_context(following)
            await until(lambda: client.status.connected)
            return client

        return self.call(enter())
