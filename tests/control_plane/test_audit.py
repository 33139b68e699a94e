"""The audit's chain: whatever somebody does to it in the store is found."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from random import Random

import msgspec
import pytest

from control_plane import keys
from control_plane.changes import audit
from control_plane.changes.errors import ChangeConflict
from control_plane.changes.plan import Head, Wanted
from control_plane.store.base import Delete, Entry, Listing, Operation, Put
from control_plane.store.memory import MemoryStore
from tests.control_plane.bench import Bench
from tests.control_plane.mesh import region
from topology.resources import Key


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with Bench(MemoryStore()) as made:
        for number in range(6):
            await made.apply(region(f"r{number}"), reason=f"reason {number}", author="operator/bob")
        yield made


async def entry(bench: Bench, key: str) -> Entry:
    found = await bench.store.get(key)
    assert found is not None
    return found


async def broken(bench: Bench, *harm: Operation) -> str:
    await bench.store.transact([], list(harm))
    found = await bench.changes.archive.verify()
    assert not found.intact
    return found.broken_at


async def test_an_empty_store_and_a_whole_chain(bench: Bench) -> None:
    assert (await Bench(MemoryStore()).changes.archive.verify()).intact
    found = await bench.changes.archive.verify()
    assert (found.intact, found.entries, found.first, found.last) == (True, 6, 1, 6)
    last = await entry(bench, keys.of_audit(6))
    assert found.head_hash == audit.hash_of(last.value)
    head = json.loads((await entry(bench, keys.HEAD)).value)
    assert head["hash"] == found.head_hash


async def test_the_hash_is_that_of_canonical_json(bench: Bench) -> None:
    """So that others can check the chain without our code."""
    value = (await entry(bench, keys.of_audit(3))).value
    canonical = json.dumps(
        json.loads(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    assert canonical.encode() == value
    following = json.loads((await entry(bench, keys.of_audit(4))).value)
    assert following["previous"] == audit.hash_of(canonical.encode())


@pytest.mark.parametrize("of", [keys.of_audit, keys.of_history])
@pytest.mark.parametrize("number", [1, 3, 6])
async def test_any_byte_altered_is_found(bench: Bench, of: object, number: int) -> None:
    key = of(number)  # type: ignore[operator]
    whole = (await entry(bench, key)).value
    rng = Random(number)
    for _ in range(60):
        at = rng.randrange(len(whole))
        altered = bytearray(whole)
        altered[at] ^= 1 << rng.randrange(8)
        told = await broken(bench, Put(key, bytes(altered)))
        assert any(f"entry {n}" in told for n in (number, number + 1)), (at, told)
    await bench.store.transact([], [Put(key, whole)])
    assert (await bench.changes.archive.verify()).intact


async def test_a_reason_rewritten_on_both_sides_is_found(bench: Bench) -> None:
    harm = []
    for key in (keys.of_audit(2), keys.of_history(2)):
        held = (await entry(bench, key)).value
        harm.append(Put(key, held.replace(b"reason 1", b"reason 9")))
    assert "entry 2: its history entry" in await broken(bench, *harm)


async def test_history_and_audit_forged_together_break_the_next_link(bench: Bench) -> None:
    told = (await entry(bench, keys.of_history(2))).value.replace(b"reason 1", b"reason 9")
    held = audit.decode((await entry(bench, keys.of_audit(2))).value)
    forged = msgspec.structs.replace(held, reason="reason 9", history=audit.hash_of(told))
    harm = [Put(keys.of_history(2), told), Put(keys.of_audit(2), audit.encode(forged))]
    assert "entry 3: entry 2 is not the one" in await broken(bench, *harm)


async def test_the_newest_forged_does_not_fit_the_head(bench: Bench) -> None:
    held = audit.decode((await entry(bench, keys.of_audit(6))).value)
    forged = msgspec.structs.replace(held, author="operator/mallory")
    told = await broken(bench, Put(keys.of_audit(6), audit.encode(forged)))
    assert told == "entry 6: it is not the one that the head names"


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        ([Delete(keys.of_audit(1))], "entry 1: it is missing"),
        ([Delete(keys.of_audit(4))], "entry 4: it is missing"),
        ([Delete(keys.of_audit(6))], "entry 6: it is missing"),
        ([Delete(keys.of_history(4))], "entry 4: its history entry is missing"),
        ([Put(keys.of_audit(7), b"{}")], "nothing that a change wrote"),
        ([Put(keys.AUDIT + "x", b"{}")], "nothing that a change wrote"),
        ([Delete(keys.HEAD)], "the head is missing"),
        ([Put(keys.HEAD, b"?")], "the head is missing"),
    ],
)
async def test_what_is_removed_or_added_is_found(
    bench: Bench, harm: list[Operation], told: str
) -> None:
    assert told in await broken(bench, *harm)


async def test_swapped_entries_are_found(bench: Bench) -> None:
    second, third = [(await entry(bench, keys.of_audit(n))).value for n in (2, 3)]
    harm = [Put(keys.of_audit(2), third), Put(keys.of_audit(3), second)]
    assert "entry 2: it says that it is entry 3" in await broken(bench, *harm)


async def test_the_oldest_cannot_be_dropped_by_moving_where_they_begin(bench: Bench) -> None:
    head = msgspec.json.decode((await entry(bench, keys.HEAD)).value, type=Head)
    moved = msgspec.structs.replace(head, oldest=3)
    harm = [Put(keys.HEAD, msgspec.json.encode(moved))]
    harm += [Delete(of(n)) for n in (1, 2) for of in (keys.of_audit, keys.of_history)]  # type: ignore[misc]
    assert "entry 6: it is not the one that the head names" in await broken(bench, *harm)


async def test_the_end_cannot_be_cut_off_without_the_hash_telling(bench: Bench) -> None:
    """Whoever rewrites the head too is found by whoever kept the old hash."""
    kept = (await bench.changes.archive.verify()).head_hash
    fifth = (await entry(bench, keys.of_audit(5))).value
    head = Head(5, audit.decode(fifth).id, audit.hash_of(fifth), 1)
    harm = [Put(keys.HEAD, msgspec.json.encode(head))]
    harm += [Delete(keys.of_audit(6)), Delete(keys.of_history(6))]  # type: ignore[list-item]
    await bench.store.transact([], list(harm))
    found = await bench.changes.archive.verify()
    assert found.intact
    assert found.head_hash != kept


async def unchain(bench: Bench) -> None:
    """The store as an earlier version left it."""
    for number in range(1, 7):
        held = json.loads((await entry(bench, keys.of_audit(number))).value)
        for field in ("previous", "history", "oldest", "rules"):
            del held[field]
        await bench.store.transact([], [Put(keys.of_audit(number), json.dumps(held).encode())])
    head = json.loads((await entry(bench, keys.HEAD)).value)
    old = {"number": head["number"], "id": head["id"]}
    await bench.store.transact([], [Put(keys.HEAD, json.dumps(old).encode())])


async def test_entries_from_before_the_chain_are_a_prefix_and_counted(bench: Bench) -> None:
    await unchain(bench)
    found = await bench.changes.archive.verify()
    assert (found.intact, found.unchained, found.head_hash) == (True, 6, "")
    await bench.apply(region("new"))
    await bench.apply(region("newer"))
    found = await bench.changes.archive.verify()
    assert (found.intact, found.unchained, found.entries) == (True, 6, 8)
    assert found.head_hash
    old = json.loads((await entry(bench, keys.of_audit(8))).value)
    del old["previous"]
    told = await broken(bench, Put(keys.of_audit(8), json.dumps(old).encode()))
    assert "entry 8: it is not chained" in told


class Busy(MemoryStore):
    """Changes are made just before each of our readings."""

    writer: Bench | None = None

    async def list(self, prefix: str) -> Listing:
        writer, self.writer = self.writer, None
        if writer is not None and prefix.startswith((keys.AUDIT, keys.HISTORY)):
            for n in range(3):
                await writer.apply(region("busy", capacity_tokens_per_s=self.revision + n))
        self.writer = writer
        return await super().list(prefix)


async def test_changes_that_go_on_while_it_is_checked_do_not_break_it() -> None:
    """What comes after the head was read, and what goes before the rest was, is left out."""
    store = Busy()
    async with Bench(store, keep=30) as made:
        for number in range(40):
            await made.apply(region(f"r{number}"))
        store.writer = made
        found = await made.changes.archive.verify()
        assert found.intact, found.broken_at
        assert 15 < found.entries < 30


async def test_forced_rules_are_in_the_chain(bench: Bench) -> None:
    many = Wanted(removes=tuple(Key("Region", f"r{n}") for n in range(4)), force=("many",))
    await bench.changes.apply(many, "admin/eve")
    last = audit.decode((await entry(bench, keys.of_audit(7))).value)
    assert last.rules == ("many",)
    assert "4 of 6 resources" in last.forced[0]


async def test_replicas_that_compete_and_lose_answers_write_one_chain() -> None:
    store = MemoryStore()
    async with Bench(store) as one, Bench(store) as other:
        await one.apply(region("first"))
        store.lose_next_reply()
        work = [each.apply(region(f"r{n}")) for n, each in enumerate([one, other] * 8)]
        done = await asyncio.gather(*work, return_exceptions=True)
        made = [revision for revision in done if isinstance(revision, int)]
        refused = [error for error in done if not isinstance(error, int)]
        assert all(isinstance(error, ChangeConflict) for error in refused), refused
        assert len(set(made)) == len(made) >= 8
        found = await one.changes.archive.verify()
        assert (found.intact, found.entries) == (True, len(made) + 1)
        assert len(await one.held()) == len(made) + 1, "none lost, none phantom"
