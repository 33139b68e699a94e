"""The registries that the conformance suite runs over, and the ways to disturb them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from random import Random
from typing import Protocol

import httpx

from control_plane.directives.observed import Member
from control_plane.membership.base import Registry
from control_plane.membership.consul import ConsulRegistry
from control_plane.membership.leases import LeaseRegistry
from control_plane.membership.settings import ConsulSettings
from control_plane.store.memory import MemoryStore
from runtime.clock import SystemClock
from tests.consul_agent import ConsulAgent
from tests.store.proxy import Proxy
from tests.store.worlds import EtcdWorld, etcd_world

TTL_S = 2.0


class World(Protocol):
    """Two replicas' views of one registry."""

    first: Registry
    second: Registry
    lapse_s: float  # a member that is not renewed is gone after so long

    async def cut(self) -> None:
        """The registry does not answer any more."""
        ...

    async def mend(self) -> None: ...

    async def wipe(self) -> None:
        """The registry forgets its members."""
        ...


class LeaseWorld:
    lapse_s = TTL_S + 4.0  # etcd looks at its leases twice a second, and rounds up

    def __init__(self, first: LeaseRegistry, second: LeaseRegistry) -> None:
        self.first: Registry = first
        self.second: Registry = second

    async def cut(self) -> None: ...

    async def mend(self) -> None: ...

    async def wipe(self) -> None: ...


class MemoryWorld(LeaseWorld):
    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        clock = SystemClock()
        super().__init__(
            LeaseRegistry(store, clock, Random(1), TTL_S),
            LeaseRegistry(store, clock, Random(2), TTL_S),
        )

    async def cut(self) -> None:
        self.store.cut()

    async def mend(self) -> None:
        self.store.mend()

    async def wipe(self) -> None:
        await wipe(self.store)


async def wipe(store: MemoryStore) -> None:
    for lease in {entry.lease for entry in (await store.list("/tradewind/v1-members/")).entries}:
        await store.revoke(lease)


@contextlib.asynccontextmanager
async def started(world: World) -> AsyncIterator[World]:
    world.first.start()
    world.second.start()
    yield world
    await world.first.close()
    await world.second.close()


@contextlib.asynccontextmanager
async def memory_world() -> AsyncIterator[World]:
    async with started(MemoryWorld(MemoryStore())) as world:
        yield world


class EtcdLeaseWorld(LeaseWorld):
    """Over a proxy that can be stopped."""

    def __init__(self, first: LeaseRegistry, second: LeaseRegistry, etcd: EtcdWorld) -> None:
        super().__init__(first, second)
        self._etcd = etcd

    async def cut(self) -> None:
        self._etcd.proxy.stopped = True
        self._etcd.proxy.cut()

    async def mend(self) -> None:
        self._etcd.proxy.stopped = False

    async def wipe(self) -> None:
        store = self._etcd.store
        for entry in (await store.list("/tradewind/v1-members/")).entries:
            await store.revoke(entry.lease)


@contextlib.asynccontextmanager
async def lease_world_on(endpoint: str) -> AsyncIterator[World]:
    clock = SystemClock()
    async with etcd_world(endpoint) as etcd:
        registries = [LeaseRegistry(etcd.store, clock, Random(n), TTL_S) for n in (1, 2)]
        world = EtcdLeaseWorld(*registries, etcd)
        await world.wipe()
        async with started(world) as running:
            yield running


class ConsulWorld:
    """Two replicas on one agent, which is reached through a proxy."""

    lapse_s = TTL_S + 3.0

    def __init__(self, proxy: Proxy, agent: ConsulAgent) -> None:
        self._proxy = proxy
        self._agent = agent
        settings = ConsulSettings(
            address=proxy.address, wait_s=5.0, pause_s=0.02, call_timeout_s=2.0
        )
        clock = SystemClock()
        self.first: Registry = ConsulRegistry(settings, clock, Random(1), TTL_S)
        self.second: Registry = ConsulRegistry(settings, clock, Random(2), TTL_S)

    async def cut(self) -> None:
        self._proxy.stopped = True
        self._proxy.cut()

    async def mend(self) -> None:
        self._proxy.stopped = False

    async def wipe(self) -> None:
        await deregister_all(self._agent)


async def deregister_all(agent: ConsulAgent) -> None:
    async with httpx.AsyncClient(base_url=f"http://{agent.address}") as http:
        for service in (await http.get("/v1/agent/services")).json():
            await http.put(f"/v1/agent/service/deregister/{service}")


@contextlib.asynccontextmanager
async def consul_world_on(agent: ConsulAgent) -> AsyncIterator[World]:
    await deregister_all(agent)
    proxy = Proxy(agent.address)
    await proxy.start()
    async with started(ConsulWorld(proxy, agent)) as running:
        yield running
    await proxy.stop()


def core(name: str = "singapore", incarnation: str = "a", **fields: object) -> Member:
    region = name.partition(".")[0]
    told = {"addresses": ("127.0.0.1:4433",), "version": "0.1.0", "since_s": 1_700_000_000.0}
    return Member(f"core/{name}", "core", region, incarnation, **(told | fields))  # type: ignore[arg-type]


def edge(name: str = "tokyo", incarnation: str = "a", worker: int | None = None) -> Member:
    node = f"edge/{name}" + ("" if worker is None else f"/{worker}")
    return Member(node, "edge", name, incarnation, version="0.1.0", since_s=1_700_000_000.0)
