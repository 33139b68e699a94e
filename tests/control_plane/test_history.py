"""History: what is kept, what a rollback makes of it, and what happens where it is damaged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane import keys
from control_plane.changes import history
from control_plane.changes.errors import (
    RULES,
    ChangeConflict,
    ChangeRefused,
    HistoryDamaged,
    UnknownRevision,
)
from control_plane.changes.history import HistoryEntry, Recorded
from control_plane.changes.plan import Wanted
from control_plane.store.base import Delete, Guard, Operation, Put
from control_plane.store.memory import MemoryStore
from runtime.validation import InvalidDocument
from tests.control_plane.bench import Bench
from tests.control_plane.mesh import region, resource, world
from topology import resources as res
from topology.resources import Key, Resource

WHY = Wanted(reason="it was wrong")


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with Bench(MemoryStore()) as made:
        yield made


async def test_a_rollback_makes_everything_as_it_was_and_is_itself_undone(bench: Bench) -> None:
    first = await bench.apply(*world())
    then = await bench.specs()
    await bench.apply(region("frankfurt", "EU", capacity_tokens_per_s=7))
    await bench.apply(region("dubai", "AE"), resource("Tenant", "new"))
    await bench.apply(region("dubai", "AE", capacity_tokens_per_s=9))
    last = await bench.changes.apply(Wanted(removes=(Key("Tenant", "globex"),)), "o/a")
    now = await bench.specs()
    plan = await bench.changes.plan_rollback(first, WHY)
    assert sorted((c.action, str(c.key)) for c in plan.effective) == [
        ("create", "Tenant/globex"),
        ("delete", "Region/dubai"),
        ("delete", "Tenant/new"),
        ("update", "Region/frankfurt"),
    ]
    assert await bench.specs() == now, "a plan changes nothing"
    done = await bench.changes.roll_back(first, WHY, "operator/bob")
    assert done.applied
    assert await bench.specs() == then
    [newest], _ = await bench.changes.archive.page(1)
    assert (newest.revision, newest.history.author, newest.history.reason) == (
        done.revision,
        "operator/bob",
        "it was wrong",
    )
    await bench.changes.roll_back(last.revision, WHY, "operator/bob")
    assert await bench.specs() == now


async def test_overrides_stay_as_they_are(bench: Bench) -> None:
    first = await bench.apply(*world())
    drain = {"region": "singapore", "action": "drain", "reason": "x"}
    await bench.apply(resource("Override", "singapore", **drain))
    await bench.apply(region("dubai", "AE"))
    await bench.changes.roll_back(first, WHY, "o/a")
    held = await bench.held()
    assert Key("Override", "singapore") in held
    assert Key("Region", "dubai") not in held


async def test_a_rollback_that_would_leave_an_override_dangling_says_so(bench: Bench) -> None:
    first = await bench.apply(*world())
    await bench.apply(region("dubai", "AE"))
    drain = {"region": "dubai", "action": "drain", "reason": "x"}
    await bench.apply(resource("Override", "dubai", **drain))
    with pytest.raises(InvalidDocument, match="Override/dubai"):
        await bench.changes.roll_back(first, WHY, "o/a")


async def test_to_where_it_is_already_nothing_changes(bench: Bench) -> None:
    await bench.apply(*world())
    last = await bench.apply(region("dubai", "AE"))
    done = await bench.changes.roll_back(last, WHY, "o/a")
    assert (done.applied, done.plan.effective) == (False, ())


async def test_safety_rules_hold_for_a_rollback(bench: Bench) -> None:
    await bench.apply(*world())
    before = await bench.apply(resource("Tenant", "eurobank", residency=["EU", "SG"]))
    await bench.apply(
        resource("Tenant", "fresh", residency=["SG"]),
        resource("Tenant", "eurobank", residency=["EU"]),
    )
    tenants = [resource("Tenant", f"t{n}") for n in range(20)]
    await bench.apply(*tenants)
    with pytest.raises(ChangeRefused, match="--force-many"):
        await bench.changes.roll_back(before, WHY, "o/a")
    forced = msgspec.structs.replace(WHY, force=("many",))
    assert (await bench.changes.roll_back(before, forced, "o/a")).applied


@pytest.mark.parametrize("revision", [0, 1, 8, 10**9])
async def test_a_revision_at_which_nothing_was_changed(bench: Bench, revision: int) -> None:
    await bench.store.transact([], [Put("/elsewhere", b"1")])
    for number in range(3):
        await bench.apply(region(f"r{number}"))
        await bench.store.transact([], [Put("/elsewhere", b"1")])
    with pytest.raises(UnknownRevision):
        await bench.changes.roll_back(revision, WHY, "o/a")


class Racing(MemoryStore):
    """Somebody else makes a change just before the next one of ours."""

    race: Bench | None = None

    async def transact(self, guards: Sequence[Guard], operations: Sequence[Operation]) -> int:
        if self.race is not None and guards:
            other, self.race = self.race, None
            await other.apply(region("theirs"))
        return await super().transact(guards, operations)


async def test_a_change_that_comes_in_meanwhile_is_not_undone_along() -> None:
    store = Racing()
    async with Bench(store) as bench, Bench(store) as other:
        first = await bench.apply(region("a"))
        await bench.apply(region("b"))
        store.race = other
        with pytest.raises(ChangeConflict, match="somebody changed"):
            await bench.changes.roll_back(first, WHY, "o/a")
        assert {key.name for key in await bench.held()} == {"a", "b", "theirs"}


async def test_only_the_newest_are_kept() -> None:
    async with Bench(MemoryStore(), keep=5) as bench:
        revisions = [await bench.apply(region("a", capacity_tokens_per_s=n + 1)) for n in range(12)]
        for prefix in (keys.HISTORY, keys.AUDIT):
            entries = (await bench.store.list(prefix)).entries
            assert [keys.number_of(entry.key) for entry in entries] == [8, 9, 10, 11, 12]
        assert (await bench.changes.archive.verify()).intact
        found, oldest = await bench.changes.archive.page(100)
        assert ([kept.number for kept in found], oldest) == ([12, 11, 10, 9, 8], 8)
        with pytest.raises(UnknownRevision, match="older than the history that is kept"):
            await bench.changes.roll_back(revisions[2], WHY, "o/a")
        await bench.changes.roll_back(revisions[8], WHY, "o/a")
        [held] = (await bench.held()).values()
        assert held.spec.capacity_tokens_per_s == 9


async def test_a_smaller_bound_takes_effect_little_by_little(bench: Bench) -> None:
    for n in range(10):
        await bench.apply(region("a", capacity_tokens_per_s=n + 1))
    counts = []
    async with Bench(bench.store, keep=3) as smaller:
        for n in range(8):
            await smaller.apply(region("a", capacity_tokens_per_s=n + 100))
            counts.append(len((await bench.store.list(keys.AUDIT)).entries))
        assert counts == [9, 8, 7, 6, 5, 4, 3, 3]
        assert (await smaller.changes.archive.verify()).intact


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (Put(keys.of_history(3), b"{"), "change 3"),
        (Put(keys.of_history(3), b"\xff"), "change 3"),
        (Put(keys.of_history(3), msgspec.json.encode({"number": 3})), "change 3"),
        (Delete(keys.of_history(3)), "change 3 cannot be used: it is missing"),
    ],
)
async def test_a_damaged_entry_stops_a_rollback_across_it(
    bench: Bench, harm: Operation, told: str
) -> None:
    revisions = [await bench.apply(region(f"r{number}")) for number in range(5)]
    await bench.store.transact([], [harm])
    for wanted in (revisions[0], revisions[1]):
        with pytest.raises((HistoryDamaged, UnknownRevision), match=told):
            await bench.changes.roll_back(wanted, WHY, "o/a")
    assert (await bench.changes.roll_back(revisions[3], WHY, "o/a")).applied
    found, _ = await bench.changes.archive.page(10)
    assert [kept.number for kept in found if not kept.damaged] == [6, 5, 4, 2, 1]
    await bench.apply(region("another"))


async def test_a_document_of_another_schema_is_told(bench: Bench) -> None:
    await bench.apply(*world())
    first = await bench.apply(region("a"))
    await bench.apply(region("a", capacity_tokens_per_s=5))
    entry = await bench.store.get(keys.of_history(3))
    assert entry is not None
    await bench.store.transact([], [Put(entry.key, entry.value.replace(b'"city"', b'"town"'))])
    with pytest.raises((HistoryDamaged, UnknownRevision)):
        await bench.changes.roll_back(first, WHY, "o/a")


async def test_pages_and_filters(bench: Bench) -> None:
    await bench.apply(*world())
    for number in range(60):
        await bench.apply(region(f"r{number % 7}", capacity_tokens_per_s=number + 1))
    archive = bench.changes.archive
    seen: list[int] = []
    before = 0
    while found := (await archive.page(9, before))[0]:
        seen += [kept.number for kept in found]
        before = seen[-1]
    assert seen == list(range(61, 0, -1))
    of_three = [kept.number for kept in (await archive.page(100, kind="Region", name="r3"))[0]]
    assert of_three == list(range(61, 4, -7))
    assert [kept.number for kept in (await archive.page(100, kind="Tenant"))[0]] == [1]
    assert (await archive.page(100, kind="Region", name="r"))[0] == []
    assert (await archive.page(10, before=1))[0] == []


@pytest.mark.parametrize(
    "head",
    [
        {"number": 10**11, "id": "x", "hash": "", "oldest": 1},
        {"number": 2, "id": "x", "oldest": 10**9},
    ],
)
async def test_a_head_of_nonsense_costs_bounded_work_and_stops_nobody(
    bench: Bench, head: dict[str, object]
) -> None:
    first = await bench.apply(region("a"))
    await bench.apply(region("b"))
    await bench.store.transact([], [Put(keys.HEAD, msgspec.json.encode(head))])
    async with asyncio.timeout(5):
        await bench.changes.archive.page(50)
        assert not (await bench.changes.archive.verify()).intact
        with pytest.raises((HistoryDamaged, UnknownRevision)):
            await bench.changes.roll_back(first, WHY, "o/a")
        await bench.apply(region("c"))
    assert len(await bench.held()) == 3


# Undoing against replaying: whatever was done, the state of then is found again.

NAMES = ("a", "b", "c")
STEP = st.tuples(st.sampled_from(NAMES), st.sampled_from([None, 1, 2, 3]))
STEPS = st.lists(st.lists(STEP, min_size=1, max_size=3, unique_by=lambda s: s[0]), max_size=12)


def spelled(name: str, capacity: int) -> Resource:
    return region(name, capacity_tokens_per_s=capacity)


@given(STEPS, st.data())
def test_undoing_finds_every_state_again(
    steps: list[list[tuple[str, int | None]]], data: st.DataObject
) -> None:
    state: dict[Key, Resource] = {}
    states = [dict(state)]
    entries: list[HistoryEntry] = []
    for step in steps:
        recorded = []
        for name, capacity in step:
            before = state.get(Key("Region", name))
            after = spelled(name, capacity) if capacity else None
            if after:
                state[after.key] = after
            else:
                state.pop(Key("Region", name), None)
            recorded.append(
                Recorded(
                    key=f"Region/{name}",
                    action="update",
                    before=res.to_document(before) if before else None,
                    after=res.to_document(after) if after else None,
                )
            )
        number = len(entries) + 1
        entries.append(HistoryEntry(number, "id", 0.0, "o/a", "", tuple(recorded)))
        states.append(dict(state))
    to = data.draw(st.integers(0, len(entries)))
    later = data.draw(st.permutations(entries[to:]))
    found = history.undo(state, later)
    for resource_ in found.puts:
        state[resource_.key] = resource_
    for key in found.removes:
        del state[key]
    assert {k: r.spec for k, r in state.items()} == {k: r.spec for k, r in states[to].items()}


@settings(max_examples=25, deadline=None)
@given(STEPS, st.data())
def test_rolling_back_through_the_store_finds_every_state_again(
    steps: list[list[tuple[str, int | None]]], data: st.DataObject
) -> None:
    async def run() -> None:
        async with Bench(MemoryStore()) as bench:
            states = {await bench.apply(region("z")): await bench.specs()}
            for step in steps:
                held = await bench.held()
                puts = tuple(spelled(name, capacity) for name, capacity in step if capacity)
                gone = [Key("Region", name) for name, capacity in step if not capacity]
                removes = tuple(key for key in gone if key in held)
                if puts or removes:
                    wanted = Wanted(puts=puts, removes=removes, force=RULES)
                    done = await bench.changes.apply(wanted, "o/a")
                    states[done.revision] = await bench.specs()
            to = data.draw(st.sampled_from(sorted(states)))
            await bench.changes.roll_back(to, Wanted(force=RULES), "o/a")
            assert await bench.specs() == states[to]
            assert (await bench.changes.archive.verify()).intact

    asyncio.run(run())
