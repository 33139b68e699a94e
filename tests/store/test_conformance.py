"""What every store promises (control_plane/store/base.py), on each of them, real etcd included."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from random import Random

import pytest

from control_plane.store.base import (
    MAX_OPERATIONS,
    MAX_TRANSACTION_BYTES,
    Change,
    Delete,
    Entry,
    Guard,
    Operation,
    Put,
    Relisted,
)
from control_plane.store.errors import Conflict, InvalidRequest, StoreClosed
from tests.store.oracle import Oracle, sorted_within
from tests.store.worlds import World, quiet, take


async def put(world: World, **values: str) -> int:
    puts = [Put(world.prefix + key, value.encode()) for key, value in values.items()]
    return await world.store.transact([], puts)


async def test_get_and_list(world: World) -> None:
    store, p = world.store, world.prefix
    assert await store.get(p + "a") is None
    assert (await store.list(p)).entries == ()
    first = await put(world, b="1", a="2")
    second = await store.transact([], [Put(p + "é/☃", b""), Put(p + "B", bytes(range(256)))])
    assert second > first
    assert await store.get(p + "a") == Entry(p + "a", b"2", first)
    listing = await store.list(p)
    assert listing.revision >= second
    assert listing.entries == (
        Entry(p + "B", bytes(range(256)), second),
        Entry(p + "a", b"2", first),
        Entry(p + "b", b"1", first),
        Entry(p + "é/☃", b"", second),
    )
    assert {entry.key for entry in (await store.list("")).entries} >= {p + "a", p + "B"}


async def test_prefixes_are_apart(world: World) -> None:
    store, p = world.store, world.prefix
    keys = ["a", "a/", "a/x", "a0", "aa", "ab", "b", "a\x7f", "aé", "a\U0010ffff"]
    begun = await store.transact([], [Put(p + key, b"") for key in keys])
    for prefix in ("a", "a/", "a/x", "a\x7f", "a\U0010ffff", "c"):
        expected = sorted(p + key for key in keys if key.startswith(prefix))
        assert [entry.key for entry in (await store.list(p + prefix)).entries] == expected
        async with aclosing(store.watch(p + prefix, begun - 1)) as watch:
            if expected:
                (change,) = await take(watch, 1)
                assert isinstance(change, Change)
                assert sorted(entry.key for entry in change.puts) == expected
            assert await quiet(watch, 0.02)


async def test_a_listing_of_many_pages_is_of_one_revision(world: World) -> None:
    store, p = world.store, world.prefix
    for hundred in range(12):
        revision = await store.transact(
            [], [Put(f"{p}{hundred:02}{i:02}", b"x") for i in range(100)]
        )
    stop = asyncio.Event()

    async def keep_deleting_and_writing() -> None:
        while not stop.is_set():
            await store.transact([], [Delete(p + "0000"), Put(p + "9999", b"")])
            await store.transact([], [Put(p + "0000", b"x"), Delete(p + "9999")])

    writer = asyncio.create_task(keep_deleting_and_writing())
    for _ in range(5):
        listing = await store.list(p)
        assert len(listing.entries) == 1200
        assert listing.revision >= revision
        await asyncio.sleep(0)
    stop.set()
    await writer


async def test_guards(world: World) -> None:
    store, p = world.store, world.prefix
    created = await store.transact([Guard(p + "a", 0)], [Put(p + "a", b"1")])
    updated = await store.transact([Guard(p + "a", created)], [Put(p + "a", b"2")])
    assert updated > created
    deleted = await store.transact([Guard(p + "a", updated)], [Delete(p + "a")])
    assert deleted > updated
    assert await store.get(p + "a") is None
    again = await store.transact([Guard(p + "a", 0)], [Put(p + "a", b"3")])
    assert await store.get(p + "a") == Entry(p + "a", b"3", again)
    # Guards on keys that are not written hold the transaction back all the same.
    with pytest.raises(Conflict):
        await store.transact([Guard(p + "other", 5)], [Put(p + "b", b"")])
    assert await store.transact([Guard(p + "a", again), Guard(p + "none", 0)], []) >= again


async def test_a_conflict_names_its_keys_and_leaves_nothing(world: World) -> None:
    store, p = world.store, world.prefix
    at = await put(world, a="1", b="1")
    moved = await put(world, b="2")
    guards = [Guard(p + "a", at), Guard(p + "b", at), Guard(p + "c", at), Guard(p + "a2", 0)]
    async with aclosing(store.watch(p, moved)) as watch:
        with pytest.raises(Conflict) as caught:
            await store.transact(guards, [Put(p + "a", b"9"), Delete(p + "b"), Put(p + "d", b"9")])
        assert caught.value.keys == (p + "b", p + "c")
        assert caught.value.found == {p + "b": moved, p + "c": 0}
        assert not caught.value.retryable
        assert f"{p}b is at revision {moved}, not {at}" in str(caught.value)
        with pytest.raises(Conflict, match="exists already"):
            await store.transact([Guard(p + "a", 0)], [Put(p + "a", b"9")])
        assert await quiet(watch)
    assert [entry.value for entry in (await store.list(p)).entries] == [b"1", b"2"]


async def test_only_a_change_takes_a_revision(world: World) -> None:
    store, p = world.store, world.prefix
    begun = await put(world, a="1")
    async with aclosing(store.watch(p, begun)) as watch:
        assert await store.transact([], [Delete(p + "none")]) == begun
        assert await store.transact([], [Delete(p + "none"), Put(p + "a", b"1")]) == begun + 1
        assert await take(watch, 1) == [Change(begun + 1, (Entry(p + "a", b"1", begun + 1),), ())]
        assert await quiet(watch, 0.05)


async def test_limits(world: World) -> None:
    store, p = world.store, world.prefix
    many: list[Operation] = [Put(f"{p}{i}", b"x") for i in range(MAX_OPERATIONS + 1)]
    bad: list[tuple[list[Guard], list[Operation], str]] = [
        ([], [], "needs a guard or an operation"),
        ([], many, "129 operations in one transaction; at most 128"),
        ([Guard(f"{p}{i}", 0) for i in range(129)], many[:1], "129 guards"),
        ([], [Put(p, b""), Delete(p)], "twice among the operations"),
        ([Guard(p, 0), Guard(p, 1)], [], "twice among the guards"),
        ([], [Put(p, b"x" * MAX_TRANSACTION_BYTES)], f"at most {MAX_TRANSACTION_BYTES}"),
        ([], [Put("", b""), Put("a\0", b"")], "cannot be empty; the key 'a\\x00' has a NUL"),
        ([], [Put("\ud800", b"")], "is not text"),
        ([], [Put("x" * 5000, b"")], "a key of 5000 bytes"),
        ([Guard(p, -1)], [], "revision -1"),
        ([Guard(p, 2**63)], [], "cannot ask for revision"),
    ]
    for guards, operations, text in bad:
        with pytest.raises(InvalidRequest) as caught:
            await store.transact(guards, operations)
        assert text in str(caught.value)
    for call in (store.get("\0"), store.get(""), store.list("\ud800")):
        with pytest.raises(InvalidRequest):
            await call
    with pytest.raises(InvalidRequest):
        store.watch(p, -1)
    revision = await store.transact(
        [Guard(operation.key, 0) for operation in many[:MAX_OPERATIONS]], many[:MAX_OPERATIONS]
    )
    async with aclosing(store.watch(p, revision - 1)) as watch:
        (change,) = await take(watch, 1)
        assert isinstance(change, Change)
        assert len(change.puts) == MAX_OPERATIONS
    await store.transact([], [Put(p + "big", b"x" * (MAX_TRANSACTION_BYTES - 2000))])


async def test_a_watch_gives_what_came_before_and_what_comes(world: World) -> None:
    store, p = world.store, world.prefix
    first = await put(world, a="1", b="1")
    second = await put(world, a="2")
    third = await store.transact([], [Delete(p + "a"), Delete(p + "b"), Put(p + "c", b"3")])
    async with aclosing(store.watch(p, first)) as watch, aclosing(store.watch(p, third)) as late:
        changes = await take(watch, 2)
        assert changes[0] == Change(second, (Entry(p + "a", b"2", second),), ())
        assert isinstance(changes[1], Change)
        assert sorted_within(changes[1]) == Change(
            third, (Entry(p + "c", b"3", third),), (p + "a", p + "b")
        )
        waiting = asyncio.create_task(take(late, 1))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        fourth = await put(world, d="4")
        expected = Change(fourth, (Entry(p + "d", b"4", fourth),), ())
        assert await take(watch, 1) == await waiting == [expected]


async def test_large_revisions_arrive_whole_and_in_order(world: World) -> None:
    """More than etcd puts into one message, so that revisions are split on the way."""
    store, p = world.store, world.prefix
    begun = await put(world, a="")
    value = b"x" * 20_000
    revisions = [
        await store.transact([], [Put(f"{p}{n}/{i}", value) for i in range(60)]) for n in range(6)
    ]
    async with aclosing(store.watch(p, begun)) as watch:
        changes = await take(watch, 6)
    assert [change.revision for change in changes if isinstance(change, Change)] == revisions
    assert all(isinstance(change, Change) and len(change.puts) == 60 for change in changes)


async def test_giving_up_waiting_loses_nothing(world: World) -> None:
    store, p = world.store, world.prefix
    begun = await put(world, a="0")
    rng = Random(3)
    async with aclosing(store.watch(p, begun)) as watch:

        async def write() -> None:
            for n in range(50):
                await put(world, a=str(n))

        writer = asyncio.create_task(write())
        seen = []
        while len(seen) < 50:
            try:
                change = await asyncio.wait_for(anext(watch), rng.random() * 0.004)
            except TimeoutError:
                continue
            assert isinstance(change, Change)
            seen.append(int(change.puts[0].value))
        await writer
    assert seen == list(range(50))


async def test_a_watch_goes_on_through_interruptions(world: World) -> None:
    store, p = world.store, world.prefix
    begun = await put(world, a="0")
    async with aclosing(store.watch(p, begun)) as watch:
        expected, seen = [], []
        for n in range(10):
            expected.append(await put(world, **{f"k{n}": "x"}))
            if n % 2:
                seen += await take(watch, 1)
            await world.interrupt()
            await store.get(p + "a")  # until the store answers again
        expected.append(await put(world, last="x"))
        seen += await take(watch, 11 - len(seen))
        assert await quiet(watch)
    assert [change.revision for change in seen if isinstance(change, Change)] == expected


async def test_compaction_is_answered_with_a_listing(world: World) -> None:
    store, p = world.store, world.prefix
    begun = await put(world, a="1", b="1")
    await put(world, a="2")
    await store.transact([], [Delete(p + "b")])
    last = await put(world, c="3")
    await world.compact(last)
    async with aclosing(store.watch(p, begun)) as watch:
        (relisted,) = await take(watch, 1)
        assert isinstance(relisted, Relisted)
        assert relisted.listing == await store.list(p)
        after = await put(world, d="4")
        assert await take(watch, 1) == [Change(after, (Entry(p + "d", b"4", after),), ())]
    async with aclosing(store.watch(p, last)) as watch:
        (change,) = await take(watch, 1)
        assert change == Change(after, (Entry(p + "d", b"4", after),), ())


async def test_a_delete_at_the_compacted_revision_is_not_missed(world: World) -> None:
    """etcd-io/etcd issues 18089 and 19179: a watch from exactly there would miss it."""
    store, p = world.store, world.prefix
    begun = await put(world, a="1")
    deleted = await store.transact([], [Delete(p + "a")])
    await put(world, b="2")
    await world.compact(deleted)
    await asyncio.sleep(0.05)
    async with aclosing(store.watch(p, begun)) as watch:
        first = (await take(watch, 1))[0]
    if isinstance(first, Relisted):
        assert [entry.key for entry in first.listing.entries] == [p + "b"]
    else:
        assert first.deletes == (p + "a",)


async def test_a_watch_that_falls_behind_compaction_is_relisted(world: World) -> None:
    store, p = world.store, world.prefix
    begun = await put(world, a="1")
    async with aclosing(store.watch(p, begun)) as watch:
        await put(world, a="2")
        await take(watch, 1)
        await world.interrupt()
        await store.get(p + "a")
        for n in range(5):
            last = await put(world, a=str(n))
        await world.compact(last)
        items = await take(watch, 1)
        while not isinstance(items[-1], Relisted) and items[-1].revision < last:
            items += await take(watch, 1)
        if isinstance(items[-1], Relisted):  # else it had connected again before the compaction
            assert items[-1].listing.entries == (Entry(p + "a", b"4", last),)


async def test_a_watch_ahead_of_the_store_is_relisted(world: World) -> None:
    """A store restored from a backup counts revisions again that a replica has already seen."""
    last = await put(world, a="1")
    async with aclosing(world.store.watch(world.prefix, last + 1_000_000)) as watch:
        (relisted,) = await take(watch, 1)
        assert isinstance(relisted, Relisted)
        assert [entry.key for entry in relisted.listing.entries] == [world.prefix + "a"]
        after = await put(world, b="2")
        (change,) = await take(watch, 1)
        assert isinstance(change, Change)
        assert change.revision == after


async def test_closing(world: World) -> None:
    store, p = world.store, world.prefix
    before = asyncio.all_tasks()
    begun = await put(world, a="1")
    closed, open_ = store.watch(p, begun), store.watch(p, begun)
    waiting = [asyncio.create_task(anext(watch, None)) for watch in (closed, open_)]
    await asyncio.sleep(0.05)
    await closed.aclose()
    await closed.aclose()
    assert await waiting[0] is None
    assert await anext(closed, None) is None
    assert not waiting[1].done()
    await store.close()
    assert await waiting[1] is None
    await store.close()
    for call in (store.get(p), store.list(p), store.transact([], [Put(p, b"")])):
        with pytest.raises(StoreClosed):
            await call
    async with asyncio.timeout(1):  # gRPC takes a moment to end a call that was cancelled
        while asyncio.all_tasks() - before:
            await asyncio.sleep(0.005)


async def test_concurrent_writers_lose_no_update(world: World) -> None:
    store, p = world.store, world.prefix
    begun = await put(world, counter="0")
    key = p + "counter"

    async def count(times: int) -> None:
        while times:
            entry = await store.get(key)
            assert entry is not None
            try:
                await store.transact(
                    [Guard(key, entry.revision)], [Put(key, b"%d" % (int(entry.value) + 1))]
                )
                times -= 1
            except Conflict:
                continue

    await asyncio.gather(*(count(5) for _ in range(6)))
    async with aclosing(store.watch(p, begun)) as watch:
        changes = await take(watch, 30)
    values = [int(change.puts[0].value) for change in changes if isinstance(change, Change)]
    assert values == list(range(1, 31))


@pytest.mark.parametrize("seed", range(2))
async def test_random_transactions_agree_with_the_oracle(world: World, seed: int) -> None:
    """Random transactions, interrupted at random, against a dictionary and a list."""
    rng, oracle, store = Random(seed), Oracle(), world.store
    keys = [world.prefix + key for key in ("a/1", "a/2", "a/3", "b/1", "b/2", "b")]
    begun = (await store.list(world.prefix)).revision
    live = store.watch(world.prefix, begun)
    for n in range(60):
        guards = [
            Guard(key, oracle.revision_of(key) if rng.random() < 0.9 else rng.choice((0, begun)))
            for key in rng.sample(keys, rng.randrange(3))
        ]
        operations: list[Operation] = [
            Put(key, b"%d" % n) if rng.random() < 0.6 else Delete(key)
            for key in rng.sample(keys, rng.randrange(1, 5))
        ]
        conflicts = oracle.conflicts(guards)
        try:
            revision = await store.transact(guards, operations)
        except Conflict as error:
            assert set(error.keys) == conflicts
        else:
            assert not conflicts
            if oracle.changes_something(operations):
                oracle.apply(operations, revision)
        if rng.random() < 0.1:
            await world.interrupt()
        if rng.random() < 0.3:
            assert (await store.list(world.prefix)).entries == oracle.listing(world.prefix)
        if rng.random() < 0.1:
            key = rng.choice(keys)
            assert await store.get(key) == oracle.entries.get(key)
    points = [begun, *(rng.choice(oracle.changes).revision for _ in range(2))]
    for prefix in (world.prefix, world.prefix + "a/", world.prefix + "b"):
        for point in points:
            expected = oracle.after(prefix, point)
            async with aclosing(store.watch(prefix, point)) as watch:
                assert _tidy(await take(watch, len(expected))) == list(map(sorted_within, expected))
    everything = oracle.after(world.prefix, begun)
    assert _tidy(await take(live, len(everything))) == list(map(sorted_within, everything))
    assert await quiet(live, 0.05)
    await live.aclose()


def _tidy(items: list[Change | Relisted]) -> list[Change]:
    return [sorted_within(item) for item in items if isinstance(item, Change)]
