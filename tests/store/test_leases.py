"""What every store promises of leases (control_plane/store/base.py), on each of them."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from control_plane.store.base import Change, Delete, Entry, Guard, Put
from control_plane.store.errors import Conflict, InvalidRequest, LeaseLost, StoreClosed
from tests.store.worlds import World, quiet, take

# etcd looks for ended leases twice a second, and not before.
LATE_S = 2.0


async def test_a_lease_that_ends_takes_its_keys_at_one_revision(world: World) -> None:
    store, p = world.store, world.prefix
    lease = await store.grant(1.0)
    first = await store.transact([], [Put(p + "a", b"1", lease), Put(p + "kept", b"1")])
    last = await store.transact([], [Put(p + "b", b"2", lease)])
    assert await store.get(p + "a") == Entry(p + "a", b"1", first, lease)
    assert (await store.list(p)).entries == (
        Entry(p + "a", b"1", first, lease),
        Entry(p + "b", b"2", last, lease),
        Entry(p + "kept", b"1", first),
    )
    async with aclosing(store.watch(p, first - 1)) as watch:
        changes = await take(watch, 2)  # nobody calls the store from here on
        assert [change.puts for change in changes if isinstance(change, Change)] == [
            (Entry(p + "a", b"1", first, lease), Entry(p + "kept", b"1", first)),
            (Entry(p + "b", b"2", last, lease),),
        ]
        (gone,) = await take(watch, 1, 1.0 + LATE_S)
        assert isinstance(gone, Change)
        assert (gone.puts, sorted(gone.deletes)) == ((), [p + "a", p + "b"])
        assert gone.revision > last
        assert [entry.key for entry in (await store.list(p)).entries] == [p + "kept"]
        assert await quiet(watch)


async def test_it_lives_as_long_as_it_is_kept_alive(world: World) -> None:
    store, p = world.store, world.prefix
    lease = await store.grant(1.5)
    revision = await store.transact([], [Put(p + "a", b"1", lease)])
    for _ in range(5):
        await asyncio.sleep(0.5)
        assert 1.5 <= await store.keep_alive(lease) <= 2.0
    assert await store.get(p + "a") == Entry(p + "a", b"1", revision, lease)
    async with asyncio.timeout(2.0 + LATE_S):
        while await store.get(p + "a") is not None:
            await asyncio.sleep(0.05)
    with pytest.raises(LeaseLost) as caught:
        await store.keep_alive(lease)
    assert caught.value.lease == lease
    await store.revoke(lease)  # which is gone already


async def test_interruptions_do_not_end_it(world: World) -> None:
    store, p = world.store, world.prefix
    lease = await store.grant(2.0)
    await store.transact([], [Put(p + "a", b"1", lease)])
    for _ in range(5):
        await world.interrupt()
        await store.keep_alive(lease)
    await world.interrupt()
    await store.revoke(lease)
    assert await store.get(p + "a") is None


async def test_revoking(world: World) -> None:
    store, p = world.store, world.prefix
    lease, other = await store.grant(30), await store.grant(30)
    assert lease != other
    begun = await store.transact(
        [], [Put(p + "a", b"1", lease), Put(p + "b", b"1", lease), Put(p + "c", b"1", other)]
    )
    async with aclosing(store.watch(p, begun)) as watch:
        await store.revoke(lease)
        (gone,) = await take(watch, 1)
        assert isinstance(gone, Change)
        assert sorted(gone.deletes) == [p + "a", p + "b"]
        await store.revoke(lease)
        await store.revoke(0x7FFF_0000_1111)  # there never was one
        assert await quiet(watch, 0.05)
    with pytest.raises(LeaseLost):
        await store.keep_alive(lease)
    assert [entry.key for entry in (await store.list(p)).entries] == [p + "c"]
    await store.revoke(other)


async def test_a_put_under_a_lease_that_ended_changes_nothing(world: World) -> None:
    store, p = world.store, world.prefix
    lease = await store.grant(30)
    begun = await store.transact([], [Put(p + "a", b"1"), Put(p + "b", b"1")])
    await store.revoke(lease)
    async with aclosing(store.watch(p, begun)) as watch:
        for dead in (lease, 0x7FFF_0000_1111):
            with pytest.raises(LeaseLost) as caught:
                await store.transact(
                    [Guard(p + "a", begun)],
                    [Put(p + "a", b"2"), Delete(p + "b"), Put(p + "c", b"2", dead)],
                )
            assert caught.value.lease == dead
            assert not caught.value.retryable
        # A guard that does not hold is told first: the lease is not even looked at.
        with pytest.raises(Conflict) as conflict:
            await store.transact([Guard(p + "a", 0)], [Put(p + "c", b"2", lease)])
        assert conflict.value.keys == (p + "a",)
        assert await quiet(watch, 0.05)
    assert [entry.value for entry in (await store.list(p)).entries] == [b"1", b"1"]
    assert world.store.status.available


async def test_a_key_belongs_to_the_lease_of_its_last_put(world: World) -> None:
    store, p = world.store, world.prefix
    old, new = await store.grant(30), await store.grant(30)
    await store.transact([], [Put(p + key, b"old", old) for key in "abc"])
    await store.transact([], [Put(p + "a", b"new", new), Put(p + "b", b"new")])
    await store.revoke(old)
    assert [(entry.key, entry.lease) for entry in (await store.list(p)).entries] == [
        (p + "a", new),
        (p + "b", 0),
    ]
    await store.revoke(new)
    assert [entry.key for entry in (await store.list(p)).entries] == [p + "b"]


async def test_it_outlives_the_client_that_asked_for_it(world: World) -> None:
    lease = await world.store.grant(30)
    revision = await world.store.transact([], [Put(world.prefix + "a", b"1", lease)])
    store = await world.another()
    assert await store.get(world.prefix + "a") == Entry(world.prefix + "a", b"1", revision, lease)
    assert await store.keep_alive(lease) >= 30
    again = await store.transact([], [Put(world.prefix + "b", b"1", lease)])
    assert again > revision
    await store.revoke(lease)
    assert (await store.list(world.prefix)).entries == ()


async def test_a_guard_on_a_key_under_a_lease_fences(world: World) -> None:
    """Whoever held the key cannot write once it is gone, nor once somebody else has it."""
    store, p = world.store, world.prefix
    mine, theirs = await store.grant(30), await store.grant(30)
    held = await store.transact([Guard(p + "leader", 0)], [Put(p + "leader", b"me", mine)])
    await store.transact([Guard(p + "leader", held)], [Put(p + "state", b"1")])
    with pytest.raises(Conflict):
        await store.transact([Guard(p + "leader", 0)], [Put(p + "leader", b"you", theirs)])
    await store.revoke(mine)
    with pytest.raises(Conflict) as gone:
        await store.transact([Guard(p + "leader", held)], [Put(p + "state", b"2")])
    assert gone.value.found == {p + "leader": 0}
    taken = await store.transact([Guard(p + "leader", 0)], [Put(p + "leader", b"you", theirs)])
    with pytest.raises(Conflict) as moved:
        await store.transact([Guard(p + "leader", held)], [Put(p + "state", b"2")])
    assert moved.value.found == {p + "leader": taken}
    assert f"{p}leader is at revision {taken}, not {held}" in str(moved.value)
    state = await store.get(p + "state")
    assert state is not None
    assert state.value == b"1"
    await store.revoke(theirs)


async def test_how_long_a_lease_may_last(world: World) -> None:
    store = world.store
    for ttl_s in (0.0, 0.99, -1.0, 86_401.0, float("nan"), float("inf")):
        with pytest.raises(InvalidRequest, match="a lease of"):
            await store.grant(ttl_s)
    lease = await store.grant(1.2)
    assert 1.2 <= await store.keep_alive(lease) <= 2.0
    await store.revoke(lease)


async def test_a_closed_store_has_no_leases(world: World) -> None:
    store = world.store
    lease = await store.grant(1)
    await store.close()
    for call in (store.grant(1), store.keep_alive(lease), store.revoke(lease)):
        with pytest.raises(StoreClosed):
            await call
