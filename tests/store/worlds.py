"""The stores that the conformance suite runs over, and the ways to disturb them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from random import Random, SystemRandom
from typing import Protocol
from uuid import uuid4

import grpc.aio
from etcd3 import etcdrpc

from control_plane.store.base import Change, Relisted, Store, Watch
from control_plane.store.etcd import EtcdSettings, EtcdStore
from control_plane.store.memory import MemoryStore
from lab.etcd_cluster import EtcdPorts
from runtime.clock import SystemClock
from tests.store.proxy import Proxy

_PORTS = (10_000, 23_000)


class World(Protocol):
    """A store, a prefix that nobody else uses, and what may happen to it."""

    store: Store
    prefix: str

    async def interrupt(self) -> None:
        """Break every connection, once."""
        ...

    async def compact(self, revision: int) -> None: ...

    async def another(self) -> Store:
        """A store of another process; the first is closed, as if its process had ended."""
        ...


class MemoryWorld:
    def __init__(self) -> None:
        self._store = MemoryStore()
        self.store: Store = self._store
        self.prefix = "/tradewind/"

    async def interrupt(self) -> None:
        self._store.cut()
        await asyncio.sleep(0)
        self._store.mend()

    async def compact(self, revision: int) -> None:
        self._store.compact(revision)

    async def another(self) -> Store:
        return self._store  # memory has no clients


class EtcdWorld:
    """Reaches a cluster's first member through a proxy that can be cut."""

    def __init__(self, store: EtcdStore, proxy: Proxy, endpoint: str) -> None:
        self.store: Store = store
        self.proxy = proxy
        self.prefix = f"/{uuid4().hex}/"
        self._endpoint = endpoint

    async def interrupt(self) -> None:
        self.proxy.cut()
        await asyncio.sleep(0.01)

    async def compact(self, revision: int) -> None:
        async with grpc.aio.insecure_channel(self._endpoint) as channel:
            await etcdrpc.KVStub(channel).Compact(etcdrpc.CompactionRequest(revision=revision))

    async def another(self) -> Store:
        await self.store.close()
        self.store = EtcdStore(EtcdSettings((self.proxy.address,)), SystemClock(), Random(2))
        return self.store


@contextlib.asynccontextmanager
async def memory_world() -> AsyncIterator[MemoryWorld]:
    world = MemoryWorld()
    yield world
    await world.store.close()


@contextlib.asynccontextmanager
async def etcd_world(endpoint: str) -> AsyncIterator[EtcdWorld]:
    proxy = Proxy(endpoint)
    await proxy.start()
    store = EtcdStore(EtcdSettings((proxy.address,)), SystemClock(), Random(1))
    world = EtcdWorld(store, proxy, endpoint)
    yield world
    await world.store.close()
    await proxy.stop()


async def take(watch: Watch, count: int, timeout_s: float = 10.0) -> list[Change | Relisted]:
    """The next `count` items of a watch."""
    async with asyncio.timeout(timeout_s):
        return [await anext(watch) for _ in range(count)]


async def quiet(watch: Watch, for_s: float = 0.1) -> bool:
    """Whether nothing comes for a while."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(anext(watch), for_s)
        return False
    return True


def free_ports(members: int) -> list[EtcdPorts]:
    """Ports that nobody listens on now."""
    ports = free_port_numbers(2 * members)
    return [EtcdPorts(ports[2 * i], ports[2 * i + 1]) for i in range(members)]


def free_port_numbers(count: int, kind: int = socket.SOCK_STREAM) -> list[int]:
    """Below those that the kernel hands out itself: a server that is restarted must find its port
    free, and not taken by somebody's connection to somewhere."""
    draw = SystemRandom()
    with contextlib.ExitStack() as stack:
        ports: set[int] = set()
        while len(ports) < count:
            port = draw.randrange(*_PORTS)
            probe = stack.enter_context(socket.socket(socket.AF_INET, kind))
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                ports.add(port)
    return sorted(ports)
