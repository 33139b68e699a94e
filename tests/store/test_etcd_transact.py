"""Transactions whose answers get lost: said to be unknown, and never sent twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from random import Random

import pytest

from control_plane.store.base import Guard, Put
from control_plane.store.errors import StoreUnavailable
from control_plane.store.etcd import EtcdSettings, EtcdStore
from lab.etcd_cluster import EtcdCluster
from runtime.clock import SystemClock
from tests.store.proxy import Proxy
from tests.store.worlds import EtcdWorld, quiet, take


@pytest.fixture
async def world(etcd: EtcdCluster) -> AsyncIterator[EtcdWorld]:
    """The member under two addresses: behind a proxy, which is used first, and as it is."""
    proxy = Proxy(etcd.endpoints[0])
    await proxy.start()
    settings = EtcdSettings((proxy.address, etcd.endpoints[0]))
    store = EtcdStore(settings, SystemClock(), Random(1))
    while not store.status.detail.endswith(f"at {proxy.address}"):
        await store.get("a")
        store._members.order.sort(key=lambda member: member.address != proxy.address)
        await asyncio.sleep(0.005)
    yield EtcdWorld(store, proxy, etcd.endpoints[0])
    await store.close()
    await proxy.stop()


async def applied_once(world: EtcdWorld, begun: int) -> None:
    world.proxy.deaf = False
    world.proxy.cut()
    await asyncio.sleep(0.05)
    async with aclosing(world.store.watch(world.prefix, begun)) as watch:
        (change,) = await take(watch, 1)
        assert [entry.key for entry in change.puts] == [world.prefix + "a"]  # type: ignore[union-attr]
        assert await quiet(watch, 0.2)


async def test_the_connection_breaks_before_the_answer(world: EtcdWorld) -> None:
    begun = (await world.store.list(world.prefix)).revision
    world.proxy.deaf = True
    write = asyncio.create_task(world.store.transact([], [Put(world.prefix + "a", b"1")]))
    await asyncio.sleep(0.1)
    world.proxy.stopped = True
    world.proxy.cut()
    with pytest.raises(StoreUnavailable, match="outcome is unknown") as caught:
        await asyncio.wait_for(write, 0.5)
    assert caught.value.ambiguous
    await applied_once(world, begun)


async def test_the_answer_never_comes(world: EtcdWorld) -> None:
    begun = (await world.store.list(world.prefix)).revision
    world.proxy.deaf = True
    loop = asyncio.get_running_loop()
    before_s = loop.time()
    with pytest.raises(StoreUnavailable, match="outcome is unknown"):
        await world.store.transact([], [Put(world.prefix + "a", b"1")])
    assert 0.9 < loop.time() - before_s < 1.4
    await applied_once(world, begun)


async def test_nothing_was_sent_on_a_broken_connection(world: EtcdWorld) -> None:
    """The next member is asked, and the caller notices nothing."""
    begun = (await world.store.list(world.prefix)).revision
    world.proxy.stopped = True
    world.proxy.cut()
    await asyncio.sleep(0.05)
    await world.store.transact([Guard(world.prefix + "a", 0)], [Put(world.prefix + "a", b"1")])
    await applied_once(world, begun)


async def test_a_caller_that_gives_up(world: EtcdWorld) -> None:
    begun = (await world.store.list(world.prefix)).revision
    world.proxy.deaf = True
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(
            world.store.transact([], [Put(world.prefix + "a", b"1")]), timeout=0.1
        )
    await applied_once(world, begun)
