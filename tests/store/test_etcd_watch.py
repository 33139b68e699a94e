"""What only a watch on etcd does: progress without events, and falling back to a listing."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator

import grpc.aio
import pytest

from control_plane.store.base import Change, Put
from control_plane.store.etcd_watch import range_of
from lab.etcd_cluster import EtcdCluster
from tests.store.worlds import EtcdWorld, etcd_world, quiet, take


@pytest.fixture
async def real(etcd: EtcdCluster) -> AsyncIterator[EtcdWorld]:
    async with etcd_world(etcd.endpoints[0]) as world:
        yield world


async def test_progress_spares_a_listing(real: EtcdWorld) -> None:
    """Nothing happened under the prefix while history was compacted: nothing to list again."""
    store, p = real.store, real.prefix
    begun = await store.transact([], [Put(p + "a", b"1")])
    watch = store.watch(p, begun)
    pending = asyncio.create_task(anext(watch))
    for n in range(5):
        elsewhere = await store.transact([], [Put(f"/elsewhere{p}{n}", b"")])
    await asyncio.sleep(0.35)  # three notices of progress
    await real.compact(elsewhere)
    await real.interrupt()
    await store.get(p)
    last = await store.transact([], [Put(p + "b", b"2")])
    change = await asyncio.wait_for(pending, 5)
    assert isinstance(change, Change)
    assert change.revision == last
    await watch.aclose()


async def test_a_connection_that_dies_in_silence_is_noticed(real: EtcdWorld) -> None:
    store, p = real.store, real.prefix
    watch = store.watch(p, await store.transact([], [Put(p + "a", b"1")]))
    assert await quiet(watch)
    assert store.status.available
    real.proxy.freeze()
    async with asyncio.timeout(3.5):  # a second of silence, and one without an answer
        while store.status.available:
            await asyncio.sleep(0.02)
    real.proxy.cut()
    real.proxy.thaw()
    async with asyncio.timeout(3.5):
        while not store.status.available:
            await asyncio.sleep(0.02)
    await store.transact([], [Put(p + "b", b"2")])
    await take(watch, 1)
    await watch.aclose()


async def test_a_consumer_that_does_not_read_holds_nothing_up(real: EtcdWorld) -> None:
    store, p = real.store, real.prefix
    begun = await store.transact([], [Put(p + "a", b"")])
    slow, quick = store.watch(p, begun), store.watch(p, begun)
    assert await quiet(slow, 0.05)
    value = b"x" * 200_000
    revisions = []
    for _ in range(60):
        revisions.append(await store.transact([], [Put(p + "a", value)]))
        await take(quick, 1)
    seen = await take(slow, 60)
    assert [change.revision for change in seen if isinstance(change, Change)] == revisions
    await quick.aclose()
    await slow.aclose()


async def test_broken_connections_leave_nothing_behind(real: EtcdWorld) -> None:
    """Not even garbage: gRPC goes on connecting for a channel until it is collected."""
    store, p = real.store, real.prefix
    watch = store.watch(p, await store.transact([], [Put(p + "a", b"")]))
    gc.collect()
    gc.disable()
    try:
        for _ in range(5):
            await real.interrupt()
            await store.get(p)
            await store.transact([], [Put(p + "a", b"")])
            await take(watch, 1)
        channels = [one for one in gc.get_objects() if isinstance(one, grpc.aio.Channel)]
        assert len(channels) == 2  # the store's own, and the watch's
    finally:
        gc.enable()
    await watch.aclose()


@pytest.mark.parametrize(
    ("prefix", "start", "end"),
    [
        ("", b"\0", b"\0"),
        ("/a/", b"/a/", b"/a0"),
        ("é", b"\xc3\xa9", b"\xc3\xaa"),
        ("a\udcff", b"a\xff", b"b"),  # bytes that are not UTF-8, as others may have written
        ("\udcff", b"\xff", b"\0"),
    ],
)
def test_the_range_of_a_prefix(prefix: str, start: bytes, end: bytes) -> None:
    assert range_of(prefix) == (start, end)
