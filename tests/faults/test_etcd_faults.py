"""The store while members of a real three-member etcd are killed, frozen and brought back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from random import Random
from typing import Any

import pytest
import pytest_asyncio

from control_plane.store.base import Change, Entry, Put, Relisted
from control_plane.store.errors import StoreUnavailable
from control_plane.store.etcd import EtcdSettings, EtcdStore
from lab.etcd_cluster import EtcdCluster
from runtime.clock import SystemClock
from tests.store.worlds import free_ports, take


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def members(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EtcdCluster]:
    cluster = EtcdCluster(tmp_path_factory.mktemp("etcd"), ports=free_ports(3), durable=False)
    await cluster.start()
    yield cluster
    await cluster.stop(grace_s=0)


@pytest.fixture
async def cluster(members: EtcdCluster) -> EtcdCluster:
    """All members run, whatever the test before did to them."""
    for index in range(3):
        if members.running(index):
            members.thaw(index)
    await members.start()
    return members


@pytest.fixture
async def store(cluster: EtcdCluster) -> AsyncIterator[EtcdStore]:
    store = EtcdStore(EtcdSettings(cluster.endpoints), SystemClock(), Random(1))
    yield store
    await store.close()


def used_by(store: EtcdStore, cluster: EtcdCluster) -> int:
    """The index of the member that the store talks to."""
    return cluster.endpoints.index(store.status.detail.removeprefix("etcd at "))


async def timed(call: Any) -> tuple[float, Any]:
    """Seconds that the call took, and its result or error."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    (result,) = await asyncio.gather(call, return_exceptions=True)
    return loop.time() - begun, result


class Traffic:
    """Writes all the time under a prefix, and reads; remembers what was acknowledged, and the
    slowest call."""

    def __init__(self, store: EtcdStore, prefix: str) -> None:
        self._store = store
        self._prefix = prefix
        self.acknowledged: dict[str, int] = {}  # key -> revision
        self.refused: set[str] = set()  # certainly not applied
        self.unknown: set[str] = set()
        self.slowest_s = 0.0
        self._stop = asyncio.Event()

    async def run(self) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            keys = [f"{self._prefix}{number:05}/{part}" for part in "ab"]
            took_s, result = await timed(self._store.transact([], [Put(k, b"x") for k in keys]))
            self.slowest_s = max(self.slowest_s, took_s)
            match result:
                case int():
                    self.acknowledged.update(dict.fromkeys(keys, result))
                case StoreUnavailable(ambiguous=True):
                    self.unknown.update(keys)
                case StoreUnavailable():
                    self.refused.update(keys)
                    await asyncio.sleep(0.02)
                case _:
                    raise result
            await asyncio.sleep(0.002)

    def stop(self) -> None:
        self._stop.set()


async def follow(store: EtcdStore, prefix: str, after: int, into: list[Change]) -> None:
    async with aclosing(store.watch(prefix, after)) as watch:
        async for item in watch:
            assert isinstance(item, Change)
            into.append(item)


async def test_no_gap_and_no_repeat_while_members_are_killed(
    cluster: EtcdCluster, store: EtcdStore
) -> None:
    prefix = "/killed/"
    begun = (await store.list(prefix)).revision
    seen: list[Change] = []
    traffic = Traffic(store, prefix)
    running = [
        asyncio.create_task(traffic.run()),
        asyncio.create_task(follow(store, prefix, begun, seen)),
    ]
    for victim in ("used", "leader", "used"):
        await asyncio.sleep(0.4)
        index = used_by(store, cluster) if victim == "used" else await cluster.leader()
        cluster.kill(index)
        before = len(traffic.acknowledged)
        async with asyncio.timeout(5):
            while len(traffic.acknowledged) < before + 20:
                await asyncio.sleep(0.01)
        await cluster.restart(index)
    traffic.stop()
    await running[0]
    last = (await store.list(prefix)).revision
    async with aclosing(store.watch(prefix, begun)) as again:
        history: list[Change | Relisted] = []
        while len(history) < len(seen) or history[-1] != seen[-1]:
            history += await take(again, 1)
        if len(history) < len({entry.revision for entry in (await store.list(prefix)).entries}):
            history += await take(again, 1)
    async with asyncio.timeout(5):
        while len(seen) < len(history):
            await asyncio.sleep(0.01)
    running[1].cancel()
    await asyncio.gather(*running, return_exceptions=True)

    assert seen == history
    assert all(len(change.puts) == 2 for change in seen), "each transaction arrives whole"
    assert len({entry.key for change in seen for entry in change.puts}) == 2 * len(seen), (
        "no transaction was applied twice"
    )
    written = {entry.key: entry.revision for change in seen for entry in change.puts}
    assert traffic.acknowledged.items() <= written.items()
    assert not traffic.refused & written.keys()
    assert set(written) <= traffic.acknowledged.keys() | traffic.unknown
    listing = await store.list(prefix)
    assert {entry.key: entry.revision for entry in listing.entries} == written
    assert max(written.values()) <= last
    assert traffic.slowest_s < 5.5  # call_timeout_ms, where an election takes several rounds


async def test_a_dead_follower_delays_nobody(cluster: EtcdCluster, store: EtcdStore) -> None:
    await store.get("a")
    while used_by(store, cluster) == await cluster.leader():
        # Move the leadership elsewhere, by taking it away.
        cluster.kill(used_by(store, cluster))
        await store.get("a")
        await cluster.start()
    cluster.kill(used_by(store, cluster))
    took_s, entry = await timed(store.get("a"))
    assert entry is None
    assert took_s < 0.5


async def test_a_frozen_member_costs_a_second(cluster: EtcdCluster, store: EtcdStore) -> None:
    revision = await store.transact([], [Put("frozen/a", b"1")])
    watch = store.watch("frozen/", revision)
    pending = asyncio.create_task(anext(watch))
    await asyncio.sleep(0.2)
    leader = await cluster.leader()
    frozen = used_by(store, cluster)
    cluster.freeze(frozen)
    took_s, result = await timed(store.transact([], [Put("frozen/b", b"1")]))
    assert isinstance(result, StoreUnavailable)
    assert result.ambiguous
    assert 0.4 < took_s < 1.3
    assert store.status.available, "one member's silence is not the cluster's"
    took_s, result = await timed(store.transact([], [Put("frozen/c", b"1")]))
    if frozen != leader:
        assert isinstance(result, int)
        assert took_s < 0.3
    async with asyncio.timeout(4):
        while not isinstance(result, int):  # lost with the leader; the next one may write it
            _, result = await timed(store.transact([], [Put("frozen/c", b"1")]))
        change = await pending
        while change.revision < result:  # type: ignore[union-attr]
            change = await anext(watch)  # it moved to another member, too
    assert change == Change(result, (Entry("frozen/c", b"1", result),), ())
    cluster.thaw(frozen)
    await watch.aclose()


async def test_a_read_from_a_frozen_member_goes_elsewhere(
    cluster: EtcdCluster, store: EtcdStore
) -> None:
    await store.get("a")
    frozen = used_by(store, cluster)
    cluster.freeze(frozen)
    took_s, result = await timed(store.list("frozen/"))
    assert not isinstance(result, BaseException)
    assert took_s < 2.6  # a second for the frozen member, and an election if it was the leader
    took_s, result = await timed(store.list("frozen/"))
    assert not isinstance(result, BaseException)
    assert took_s < 0.3
    cluster.thaw(frozen)


async def test_all_down_is_said_fast_and_heals_by_itself(
    cluster: EtcdCluster, store: EtcdStore
) -> None:
    clock = SystemClock()
    revision = await store.transact([], [Put("down/a", b"1")])
    watch = store.watch("down/", revision)
    pending = asyncio.create_task(anext(watch))
    await asyncio.sleep(0.1)
    assert store.status.available
    up_since_s = store.status.since_s
    before_s = clock.wall()
    for index in range(3):
        cluster.kill(index)
    await asyncio.sleep(0.3)
    status = store.status  # no call was made: the watch noticed
    assert not status.available
    assert before_s <= status.since_s <= clock.wall()
    assert status.since_s > up_since_s
    assert "refused" in status.detail or "closed" in status.detail, status.detail
    for call in (store.get("a"), store.list("a"), store.transact([], [Put("a", b"")])):
        took_s, error = await timed(call)
        assert isinstance(error, StoreUnavailable)
        assert not error.ambiguous
        assert took_s < 1.2
    assert store.status.since_s == status.since_s
    await cluster.start()
    async with asyncio.timeout(5):
        while not store.status.available:  # again without a call
            await asyncio.sleep(0.02)
    assert store.status.since_s > status.since_s
    assert await store.get("down/a") == Entry("down/a", b"1", revision)
    again = await store.transact([], [Put("down/a", b"2")])
    async with asyncio.timeout(5):
        change = await pending
    assert isinstance(change, Change)
    assert change.revision == again
    await watch.aclose()


async def test_a_minority_serves_nothing(cluster: EtcdCluster, store: EtcdStore) -> None:
    """One member of three is left: it answers, but has nobody to agree with."""
    patient = store
    settings = EtcdSettings(cluster.endpoints, call_timeout_ms=500)
    store = EtcdStore(settings, SystemClock(), Random(2))
    revision = await store.transact([], [Put("minority/a", b"1")])
    watch = store.watch("minority/", revision)
    pending = asyncio.create_task(anext(watch))
    await asyncio.sleep(0.1)
    left = used_by(store, cluster)
    for index in {0, 1, 2} - {left}:
        cluster.kill(index)
    async with asyncio.timeout(5):
        while store.status.available:  # without a call: the watch is told that nobody leads
            await asyncio.sleep(0.02)
    took_s, error = await timed(store.get("minority/a"))
    assert isinstance(error, StoreUnavailable)
    assert took_s < 1.0
    took_s, error = await timed(store.transact([], [Put("minority/a", b"2")]))
    assert isinstance(error, StoreUnavailable)
    assert took_s < 1.0
    assert not error.ambiguous  # etcd refused at the door
    await cluster.start()
    assert await patient.get("minority/a") == Entry("minority/a", b"1", revision)
    again = await patient.transact([], [Put("minority/b", b"2")])
    async with asyncio.timeout(5):
        change = await pending
    assert isinstance(change, Change)
    assert revision < change.revision <= again
    await store.close()


async def test_a_lease_outlives_the_members_that_knew_it(
    cluster: EtcdCluster, store: EtcdStore
) -> None:
    """Kept alive like the director's, through the death of followers and of leaders."""
    lease = await store.grant(4)
    revision = await store.transact([], [Put("leased/a", b"1", lease)])
    watch = store.watch("leased/", revision)
    pending = asyncio.create_task(anext(watch))
    for victim in ("leader", "frozen"):
        index = await cluster.leader() if victim == "leader" else used_by(store, cluster)
        if victim == "frozen":
            cluster.freeze(index)
        else:
            cluster.kill(index)
        for _ in range(4):
            took_s, lasts_s = await timed(store.keep_alive(lease))
            assert lasts_s >= 4, lasts_s
            assert took_s < 3.5  # a second for what is frozen, and an election
            await asyncio.sleep(0.2)
        if victim == "frozen":
            cluster.thaw(index)
        else:
            await cluster.restart(index)
    assert not pending.done(), "the key never went"
    entry = await store.get("leased/a")
    assert entry == Entry("leased/a", b"1", revision, lease)

    # Without a majority nobody keeps a lease alive, and nobody ends it either. (The leader may,
    # for the moment that it takes to see that it is alone.)
    left = used_by(store, cluster)
    for index in {0, 1, 2} - {left}:
        cluster.kill(index)
    async with asyncio.timeout(8):
        while not isinstance((await timed(store.keep_alive(lease)))[1], StoreUnavailable):
            await asyncio.sleep(0.1)
    await cluster.start()
    async with asyncio.timeout(8):
        while not isinstance((await timed(store.keep_alive(lease)))[1], float):
            await asyncio.sleep(0.05)
    assert not pending.done()
    await store.revoke(lease)
    change = await asyncio.wait_for(pending, 3)
    assert isinstance(change, Change)
    assert change.deletes == ("leased/a",)
    await watch.aclose()


async def test_reconnecting_does_not_spin(cluster: EtcdCluster, store: EtcdStore) -> None:
    """While everything is down a watch tries a few times a second, not a thousand times."""
    watch = store.watch("spin/", await store.transact([], [Put("spin/a", b"")]))
    pending = asyncio.create_task(anext(watch))
    await asyncio.sleep(0.1)
    attempts = 0
    connect = watch._connect

    async def counted() -> None:
        nonlocal attempts
        attempts += 1
        await connect()

    watch._connect = counted  # type: ignore[method-assign]
    for index in range(3):
        cluster.kill(index)
    await asyncio.sleep(1.0)
    assert 5 <= attempts <= 20
    await watch.aclose()
    with pytest.raises(StopAsyncIteration):
        await pending
