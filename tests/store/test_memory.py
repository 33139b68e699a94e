"""The memory store against the oracle, and the failures that it plays."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.store.base import Delete, Guard, Operation, Put, Relisted
from control_plane.store.errors import Conflict, StoreUnavailable
from control_plane.store.memory import MemoryStore
from runtime.clock import ManualClock
from tests.store.oracle import Oracle, sorted_within

KEYS = st.sampled_from(["a", "a/1", "a/2", "b", "b/\u00e9"])
OPERATIONS = st.lists(
    st.one_of(st.builds(Put, KEYS, st.binary(max_size=2)), st.builds(Delete, KEYS)),
    min_size=1,
    max_size=4,
    unique_by=lambda operation: operation.key,
)
# Guards hold or not: what is added to the true revision.
STEPS = st.lists(
    st.tuples(st.dictionaries(KEYS, st.sampled_from([0, 0, 0, 1]), max_size=2), OPERATIONS),
    max_size=15,
)


@given(STEPS, st.integers(1, 20), st.integers(0, 20))
async def test_any_history_agrees_with_the_oracle(
    steps: list[tuple[dict[str, int], list[Operation]]], kept: int, behind: int
) -> None:
    store, oracle = MemoryStore(kept_changes=kept), Oracle()

    async def write(*operations: Operation) -> None:
        oracle.apply(operations, await store.transact([], operations))

    for offsets, operations in steps:
        guards = [Guard(key, oracle.revision_of(key) + off) for key, off in offsets.items()]
        try:
            revision = await store.transact(guards, operations)
        except Conflict as error:
            assert set(error.keys) == oracle.conflicts(guards) != set()
            continue
        assert not oracle.conflicts(guards)
        if oracle.changes_something(operations):
            oracle.apply(operations, revision)
    for prefix in ("", "a", "a/", "b/", "c"):
        assert (await store.list(prefix)).entries == oracle.listing(prefix)
        after = max(0, store.revision - behind)
        async with aclosing(store.watch(prefix, after)) as watch:
            await write(Put(prefix + "end", b""))
            got = []
            while True:
                item = await anext(watch)
                if isinstance(item, Relisted):
                    assert behind >= kept
                    assert item.listing == await store.list(prefix)
                    break
                got.append(sorted_within(item))
                if item.revision == store.revision:
                    assert got == list(map(sorted_within, oracle.after(prefix, after)))
                    break


async def test_cut_and_mend() -> None:
    clock = ManualClock(wall=100.0)
    store = MemoryStore(clock)
    await store.transact([], [Put("a", b"1")])
    watch = store.watch("", 2)
    assert store.status.available
    clock.advance(5)
    store.cut("the cable is out")
    assert (store.status.available, store.status.since_s) == (False, 105.0)
    with pytest.raises(StoreUnavailable, match="the cable is out") as caught:
        await store.get("a")
    assert caught.value.retryable
    assert not caught.value.ambiguous
    pending = asyncio.create_task(anext(watch))
    clock.advance(5)
    store.mend()
    assert (store.status.available, store.status.since_s) == (True, 110.0)
    await store.transact([], [Put("a", b"2")])
    assert (await pending).revision == 3  # type: ignore[union-attr]


async def test_a_lost_reply_is_ambiguous() -> None:
    store = MemoryStore()
    store.lose_next_reply()
    with pytest.raises(StoreUnavailable, match="outcome is unknown") as caught:
        await store.transact([], [Put("a", b"1")])
    assert caught.value.ambiguous
    entry = await store.get("a")
    assert entry is not None
    assert await store.transact([Guard("a", entry.revision)], [Delete("a")]) == 3
