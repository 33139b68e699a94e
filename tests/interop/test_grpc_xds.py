"""gRPC's own `xds:///` resolver behind a real replica, through a drain and a dead region."""

from __future__ import annotations

import asyncio
import json
import os
import string
import sys
from asyncio.subprocess import Process
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from control_plane.service import Replica
from control_plane.store.memory import MemoryStore
from runtime.clock import SystemClock
from tests.control_plane.mesh import Mesh, at, serving, until
from tests.discovery_proxies.backends import GrpcBackend, backends
from tests.discovery_proxies.envoy import example
from tests.discovery_proxies.worlds import REGIONS, drain, put, resources, tenant

NODE = "proxy/client"
pytestmark = pytest.mark.timeout(60)


class Caller:
    """The client's calls as it tells of them: where they went, what failed."""

    def __init__(self, process: Process) -> None:
        assert process.stdout is not None
        self.where: Counter[str] = Counter()
        self.failed: list[str] = []
        self._lines = process.stdout
        self._told = asyncio.Condition()
        self._task = asyncio.create_task(self._listen())

    async def next(self, count: int, timeout_s: float = 15.0) -> Counter[str]:
        """Where the next `count` calls that succeed go, from a moment from now on."""
        async with asyncio.timeout(timeout_s), self._told:
            await self._told.wait()
            await self._told.wait()
            before = self.where
            await self._told.wait_for(lambda: (self.where - before).total() >= count)
            return self.where - before

    async def failure(self, timeout_s: float = 15.0) -> str:
        """What the first call that fails fails with."""
        async with asyncio.timeout(timeout_s), self._told:
            await self._told.wait_for(lambda: bool(self.failed))
            return self.failed[0]

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _listen(self) -> None:
        async for line in self._lines:
            told = json.loads(line)
            async with self._told:
                self.where, self.failed = Counter(told["where"]), told["failed"]
                self._told.notify_all()


class Scene:
    """A replica on a store, three regions with gRPC servers, and a bootstrap for clients."""

    def __init__(
        self,
        store: MemoryStore,
        replica: Replica,
        regions: dict[str, GrpcBackend],
        bootstrap: dict[str, Any],
        stop_replica: Callable[[], Awaitable[None]],
    ) -> None:
        self.store = store
        self.replica = replica
        self.regions = regions
        self.stop_replica = stop_replica
        self._bootstrap = bootstrap

    @asynccontextmanager
    async def caller(self, target: str = "tradewind", **headers: str) -> AsyncIterator[Caller]:
        """A client that calls `xds:///<target>` with these headers."""
        named = {f"x-tradewind-{key}": value for key, value in headers.items()}
        bootstrap = {"GRPC_XDS_BOOTSTRAP_CONFIG": json.dumps(self._bootstrap)}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.discovery_proxies.grpc_caller"),
            *(f"xds:///{target}", json.dumps(named)),
            env=os.environ | bootstrap,
            stdout=asyncio.subprocess.PIPE,
        )
        caller = Caller(process)
        try:
            yield caller
        finally:
            await caller.close()
            process.kill()
            await process.communicate()

    async def put(self, *args: Any, **kwargs: Any) -> None:
        """Change the store, and wait until the client has acknowledged what follows from it."""
        revision = await put(self.store, *args, **kwargs)
        await until(lambda: self._acked() >= revision)

    def _acked(self) -> int:
        sessions = [s for s in self.replica.discovery.sessions if s.connected]
        return min((s.acked_revision for s in sessions), default=0)


@asynccontextmanager
async def scene(mesh: Mesh, **metadata: str) -> AsyncIterator[Scene]:
    store = MemoryStore(SystemClock())
    async with AsyncExitStack() as stack:
        regions = await stack.enter_async_context(backends(GrpcBackend, *REGIONS))
        await put(store, *resources({name: b.endpoint for name, b in regions.items()}))
        replica_stack = await stack.enter_async_context(AsyncExitStack())
        replica = await replica_stack.enter_async_context(serving(mesh, store))
        files = mesh.files(NODE)
        text = string.Template(example("grpc bootstrap")).substitute(
            name=NODE.removeprefix("proxy/"),
            control_plane=at(replica),
            certificate=files.certificate,
            key=files.key,
            ca=files.ca,
        )
        document = json.loads(text)
        document["node"]["metadata"] = metadata
        yield Scene(store, replica, regions, document, replica_stack.aclose)


async def test_through_a_drain_and_back(mesh: Mesh) -> None:
    async with scene(mesh) as made, made.caller(tenant="acme", model="smol") as load:
        assert set(await load.next(50)) == {"singapore"}
        await made.put(drain("singapore", 30))
        where = await load.next(400)
        assert where["singapore"] + where["dubai"] == where.total()
        assert 0.2 < where["dubai"] / where.total() < 0.4
        await made.put(drain("singapore", 100))
        assert set(await load.next(100)) == {"dubai"}
        await made.put(remove=(drain("singapore"),))
        assert set(await load.next(100)) == {"singapore"}
        assert load.failed == []


async def test_a_tenant_stays_in_its_residency(mesh: Mesh) -> None:
    async with scene(mesh) as made:
        async with made.caller(tenant="eurobank") as load:
            assert set(await load.next(50)) == {"frankfurt"}
            # Nowhere else to go: it fails, and goes nowhere.
            await made.put(drain("frankfurt", 100))
            assert "UNAVAILABLE" in await load.failure()
        assert {name for name, b in made.regions.items() if b.served} == {"frankfurt"}


async def test_tenants_that_share_a_route(mesh: Mesh) -> None:
    alike = [tenant(f"acme.{i}", tier="vip", models=["smol"]) for i in range(1_200)]
    async with scene(mesh) as made:
        for start in range(0, len(alike), 100):
            await put(made.store, *alike[start : start + 100])
        async with made.caller(tenant="acme.1199", model="smol") as load:
            assert set(await load.next(5)) == {"singapore"}
        async with made.caller(tenant="acmes1199", model="smol") as load:
            assert "UNAVAILABLE" in await load.failure()


@pytest.mark.parametrize(
    "headers", [{}, {"tenant": "nobody"}, {"tenant": "acme", "model": "nothing"}]
)
async def test_who_is_not_known_goes_nowhere(mesh: Mesh, headers: dict[str, str]) -> None:
    async with scene(mesh) as made, made.caller(**headers) as load:
        assert "UNAVAILABLE" in await load.failure()
        assert not any(b.served for b in made.regions.values())


async def test_a_region_that_dies_is_left_to_the_next(mesh: Mesh) -> None:
    async with scene(mesh) as made, made.caller(tenant="acme", model="smol") as load:
        await load.next(50)
        await made.regions["singapore"].stop()
        assert set(await load.next(100)) == {"dubai"}
        assert len(load.failed) <= 1  # what was in the air when it died


async def test_the_replica_dies(mesh: Mesh) -> None:
    async with scene(mesh) as made, made.caller(tenant="acme", model="smol") as load:
        await load.next(20)
        await made.put(drain("singapore", 100))
        await made.stop_replica()
        assert set(await load.next(200)) == {"dubai"}
        assert load.failed == []


async def test_a_client_of_one_tenant_needs_no_header(mesh: Mesh) -> None:
    async with scene(mesh, tenant="eurobank") as made, made.caller() as load:
        assert set(await load.next(20)) == {"frankfurt"}
