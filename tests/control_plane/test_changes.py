"""Changes: what is planned, what is refused, what two writers at once can do to each other."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import ClassVar

import msgspec
import pytest

from control_plane import keys
from control_plane.changes import safety
from control_plane.changes.apply import MAX_RESOURCES
from control_plane.changes.audit import AuditEntry
from control_plane.changes.errors import ChangeConflict, ChangeRefused, UnknownResource
from control_plane.changes.history import HistoryEntry
from control_plane.changes.plan import Wanted
from control_plane.store.base import Delete, Guard, Operation, Put
from control_plane.store.errors import Conflict, StoreUnavailable
from control_plane.store.memory import MemoryStore
from runtime.validation import InvalidDocument
from tests.control_plane.bench import NOW_S, Bench
from tests.control_plane.mesh import region, resource, until, world
from topology.resources import Key, Resource
from topology.snapshot import Snapshot


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with Bench(MemoryStore()) as made:
        yield made


async def test_a_change_leaves_history_and_audit_in_the_same_transaction(bench: Bench) -> None:
    await bench.apply(*world())
    revision = await bench.apply(
        region("frankfurt", "EU", capacity_tokens_per_s=7), reason="smaller", author="operator/bob"
    )
    listing = await bench.store.list("/tradewind/")
    of_last = {entry.key: entry for entry in listing.entries if entry.revision == revision}
    assert sorted(of_last) == [
        "/tradewind/v1-audit/000000000002",
        "/tradewind/v1-history/000000000002",
        "/tradewind/v1/.head",
        "/tradewind/v1/Region/frankfurt",
    ]
    history = msgspec.json.decode(of_last[keys.of_history(2)].value, type=HistoryEntry)
    audit = msgspec.json.decode(of_last[keys.of_audit(2)].value, type=AuditEntry)
    assert (history.author, history.reason, audit.replica) == ("operator/bob", "smaller", "cp-1")
    [recorded] = history.changes
    assert recorded.before["spec"]["capacity_tokens_per_s"] == 100
    assert recorded.after["spec"]["capacity_tokens_per_s"] == 7
    assert audit.keys == ("Region/frankfurt",)
    assert json.loads(of_last[keys.HEAD].value)["number"] == 2


async def test_the_author_is_the_caller_whatever_the_document_says(bench: Bench) -> None:
    forged = msgspec.structs.replace(region("a"), author="operator/mallory", time_s=1.0)
    revision = await bench.apply(forged)
    held = (await bench.held())[Key("Region", "a")]
    assert (held.author, held.time_s, held.revision) == ("operator/alice", NOW_S, revision)


async def test_nothing_to_do_writes_nothing(bench: Bench) -> None:
    revision = await bench.apply(*world())
    done = await bench.changes.apply(Wanted(puts=tuple(world())), "operator/alice")
    assert (done.applied, done.revision, bench.store.revision) == (False, revision, revision)


async def test_references_are_checked_on_the_result(bench: Bench) -> None:
    await bench.apply(*world())
    before = bench.store.revision
    with pytest.raises(InvalidDocument, match="Region 'singapore'"):
        await bench.changes.apply(Wanted(removes=(Key("Region", "singapore"),)), "o/a")
    route = resource("Route", "all", models=["*"], tenants=["*"], regions=["frankfurt"])
    model = resource("Model", "smol", regions=["frankfurt"], context_tokens=2048)
    wanted = Wanted(puts=(route, model), removes=(Key("Region", "singapore"),))
    assert bench.store.revision == before
    await bench.changes.apply(wanted, "o/a")
    assert Key("Region", "singapore") not in await bench.held()


@pytest.mark.parametrize(
    "wanted",
    [
        Wanted(removes=(Key("Region", ""),)),
        Wanted(removes=(Key("Region", "*"),)),
        Wanted(removes=(Key("Regoin", "x"),)),
        Wanted(puts=(region("a"), region("a"))),
        Wanted(puts=(region("a"),), removes=(Key("Region", "a"),)),
        Wanted(puts=(region("a"),), force=("everything",)),
    ],
)
async def test_what_is_no_request(bench: Bench, wanted: Wanted) -> None:
    with pytest.raises(InvalidDocument):
        await bench.changes.apply(wanted, "o/a")
    assert bench.store.revision == 1


@pytest.mark.parametrize("wanted", [Wanted(), Wanted(prune=True)])
async def test_nothing_named_is_never_all(bench: Bench, wanted: Wanted) -> None:
    await bench.apply(*world())
    with pytest.raises(ChangeRefused, match="--force-empty-selector"):
        await bench.changes.apply(wanted, "o/a")
    forced = msgspec.structs.replace(wanted, force=("empty-selector",))
    done = await bench.changes.apply(forced, "o/a")
    assert (done.applied, bench.store.revision) == (False, done.revision)
    assert len(await bench.held()) == len(world())


class _Noting(tuple[Resource, ...]):
    """Notes which threads look at it."""

    threads: ClassVar[set[threading.Thread]] = set()

    def __iter__(self) -> Iterator[Resource]:
        self.threads.add(threading.current_thread())
        return super().__iter__()


async def test_a_plan_is_made_beside_the_event_loop(bench: Bench) -> None:
    """With thousands of resources it takes a while, and there are leases to renew meanwhile."""
    _Noting.threads.clear()
    await bench.changes.plan(Wanted(puts=_Noting(world())))
    assert _Noting.threads
    assert threading.main_thread() not in _Noting.threads


async def test_removing_what_is_not_there(bench: Bench) -> None:
    with pytest.raises(UnknownResource, match="Region/nowhere"):
        await bench.changes.apply(Wanted(removes=(Key("Region", "nowhere"),)), "o/a")


async def test_more_than_a_transaction_takes(bench: Bench) -> None:
    many = [region(f"r{i}") for i in range(MAX_RESOURCES + 1)]
    with pytest.raises(InvalidDocument, match="in parts"):
        await bench.apply(*many)
    assert bench.store.revision == 1
    await bench.apply(*many[:-1])


async def test_twenty_writers_of_different_things_all_get_through(bench: Bench) -> None:
    async with asyncio.TaskGroup() as group:
        for number in range(20):
            group.create_task(bench.apply(region(f"r{number}")))
    assert len(await bench.held()) == 20
    head = json.loads((await bench.store.get(keys.HEAD)).value)
    assert head["number"] == 20


class Contended(MemoryStore):
    """Somebody else writes just before each transaction of ours, as often as told."""

    def __init__(self, *others: Put) -> None:
        super().__init__()
        self.others = list(others)

    async def transact(self, guards: Sequence[Guard], operations: Sequence[Operation]) -> int:
        if self.others and guards:
            await super().transact([], [self.others.pop(0)])
        return await super().transact(guards, operations)


async def test_two_writers_of_one_thing_one_gets_a_conflict() -> None:
    theirs = Put("/tradewind/v1/Region/a", b'{"kind":"Region"}')
    bench = Bench(Contended(theirs))
    with pytest.raises(ChangeConflict, match="Region/a is at revision 2"):
        await bench.apply(region("a"), region("b"))
    entries = (await bench.store.list("/")).entries
    assert [entry.key for entry in entries] == ["/tradewind/v1/Region/a"], "nothing half-applied"


async def test_a_race_cannot_leave_a_dangling_reference(bench: Bench) -> None:
    await bench.apply(region("a"), region("b"))
    model = resource("Model", "m", regions=["a"], context_tokens=1)
    done = await asyncio.gather(
        bench.apply(model),
        bench.changes.apply(Wanted(removes=(Key("Region", "a"),)), "o/b"),
        return_exceptions=True,
    )
    assert sum(isinstance(each, InvalidDocument) for each in done) == 1
    Snapshot.build(1, (await bench.held()).values())


async def test_a_lost_answer_is_looked_up(bench: Bench) -> None:
    bench.store.lose_next_reply()
    revision = await bench.apply(region("a"))
    assert (await bench.held())[Key("Region", "a")].revision == revision


async def test_without_the_store_nothing_is_changed(bench: Bench) -> None:
    await bench.apply(*world())
    bench.store.cut()
    with pytest.raises(StoreUnavailable):
        await bench.apply(region("a"))
    bench.store.mend()
    assert Key("Region", "a") not in await bench.held()


async def test_a_broken_value_can_be_put_over_and_removed(bench: Bench) -> None:
    await bench.apply(region("a"), region("b"))
    for name in ("a", "b"):
        await bench.store.transact([], [Put(f"/tradewind/v1/Region/{name}", b"\xff{")])
    await bench.apply(region("a", capacity_tokens_per_s=5))
    await bench.changes.apply(Wanted(removes=(Key("Region", "b"),)), "o/a")
    assert list(await bench.held()) == [Key("Region", "a")]


async def test_what_get_shows_is_taken_into_a_store_that_was_wiped(bench: Bench) -> None:
    """Its revisions are of a store that is no more."""
    await bench.apply(*world())
    await bench.apply(region("dubai", "AE"))
    shown = tuple(bench.catalog.view.snapshot)
    listing = await bench.store.list("/tradewind/")
    await bench.store.transact([], [Delete(entry.key) for entry in listing.entries])
    await until(lambda: bench.catalog.view.withheld)
    wrong = (msgspec.structs.replace(shown[0], revision=999), *shown[1:])
    with pytest.raises(ChangeConflict, match="does not exist any more; yours is 999"):
        await bench.apply(*wrong)
    await bench.apply(*shown)
    await until(lambda: not bench.catalog.view.withheld)
    assert await bench.specs() == {resource.key: resource.spec for resource in shown}


async def test_a_broken_value_stands_in_nobodys_way(bench: Bench) -> None:
    """Others refer to it, and nodes go on with what it was: so do changes to other things."""
    await bench.apply(*world())
    good = (await bench.held())[Key("Region", "singapore")]
    broken = await bench.store.transact([], [Put(keys.of_resource(good.key), b"\xff{")])
    await until(lambda: bool(bench.catalog.view.problems))
    there = {"region": "singapore", "action": "drain", "reason": "x", "percent": 10.0}
    await bench.apply(resource("Override", "singapore", **there))
    assert bench.catalog.view.problems
    again = msgspec.structs.replace(good, revision=broken)
    assert await bench.apply(again) > broken, "what it was is written, though nothing differs"
    await until(lambda: not bench.catalog.view.problems)
    assert (await bench.held())[good.key].spec == good.spec


@pytest.mark.parametrize(
    "harm",
    [
        Put(keys.HEAD, b"nonsense"),
        Put(keys.HEAD, b'{"number": -5, "id": ""}'),
        Put(keys.HEAD, b'{"number": 1000000000000000, "id": ""}'),
        Delete(keys.HEAD),
    ],
)
async def test_a_lost_head_does_not_stop_anybody(bench: Bench, harm: Operation) -> None:
    await bench.apply(region("a"))
    await bench.store.transact([], [harm])
    await bench.apply(region("b"))
    await bench.apply(region("c"))
    assert len(await bench.held()) == 3
    verified = await bench.changes.archive.verify()
    assert (verified.intact, verified.entries) == (True, 3), "the chain goes on where it was"


async def test_guards_and_operations_of_others_go_into_the_same_transaction(bench: Bench) -> None:
    theirs = await bench.store.transact([], [Put("/leader", b"cp-1")])
    also = (Put("/beside", b"x"),)
    done = await bench.changes.apply(
        Wanted(puts=(region("a"),)), "o/a", guards=(Guard("/leader", theirs),), also=also
    )
    assert (await bench.store.get("/beside")).revision == done.revision
    again = await bench.changes.apply(
        Wanted(puts=(region("a"),)), "o/a", guards=(Guard("/leader", theirs),), also=also
    )
    assert (await bench.store.get("/beside")).revision == again.revision > done.revision
    with pytest.raises(Conflict, match="/leader"):
        await bench.changes.apply(
            Wanted(puts=(region("b"),)), "o/a", guards=(Guard("/leader", theirs + 1),)
        )
    assert Key("Region", "b") not in await bench.held()


# Safety rules. Each row: what is put and removed, and which rules refuse it.

DRAIN = {"action": "drain", "reason": "x"}


def override(name: str, **spec: object) -> Resource:
    return resource("Override", name, **({"region": name} | DRAIN | spec))


TENANTS = [resource("Tenant", f"t{i}", api_keys=["sha256:" + f"{i:064x}"]) for i in range(10)]


@pytest.mark.parametrize(
    ("puts", "removes", "rules"),
    [
        ([override("singapore")], [], []),
        ([override("frankfurt")], [], ["residency"]),
        ([override("frankfurt", percent=1)], [], ["residency"]),
        ([override("singapore", percent=99)], [], []),
        (
            [override("frankfurt", percent=50), override("singapore", percent=50)],
            [],
            ["residency", "last-region"],
        ),
        ([override("frankfurt", expires_s=NOW_S - 1)], [], []),
        ([override("frankfurt", expires_s=NOW_S + 1)], [], ["residency"]),
        ([override("frankfurt", action="failover")], [], ["residency"]),
        ([override("frankfurt"), override("singapore")], [], ["residency", "last-region"]),
        ([region("frankfurt", "SG")], [], ["residency"]),
        (
            [resource("Route", "all", models=["*"], tenants=["*"], regions=["singapore"])],
            [],
            ["residency"],
        ),
        ([resource("Model", "smol", regions=["singapore"], context_tokens=1)], [], ["residency"]),
        ([resource("Tenant", "eurobank", residency=["AE"])], [], ["residency"]),
        ([], ["Tenant/eurobank"], []),
        ([], ["Route/all"], ["residency"]),
        ([], ["Tenant/t0", "Tenant/t1", "Tenant/t2"], []),
        ([], ["Tenant/t0", "Tenant/t1", "Tenant/t2", "Tenant/t3"], ["many"]),
        ([resource("Tenant", f"t{i}", tier="vip") for i in range(4)], [], ["many"]),
        ([resource("Tenant", f"new{i}") for i in range(50)], [], []),
        ([], ["Zone/tradewind.test"], []),
    ],
)
def test_safety_rules(puts: list[Resource], removes: list[str], rules: list[str]) -> None:
    before = Snapshot.build(1, [*world(), *TENANTS])
    after = before.changed(2, puts, [Key.parse(text) for text in removes])
    found = safety.refusals(before, after, NOW_S)
    assert [refusal.rule for refusal in found] == rules


def test_what_was_harmed_before_is_not_refused_again() -> None:
    before = Snapshot.build(1, [*world(), override("frankfurt"), override("singapore")])
    after = before.changed(2, [region("dubai", "AE")])
    assert safety.refusals(before, after, NOW_S) == ()
    assert safety.refusals(before, before.changed(2, [], [Key("Override", "frankfurt")]), 0) == ()


def test_many_routes_that_lose_the_same_region_are_one_refusal() -> None:
    routes = [
        resource("Route", f"r{n:03d}", models=["*"], tenants=["*"], regions=["singapore"])
        for n in range(200)
    ]
    before = Snapshot.build(1, [*world(), *routes])
    drained = resource("Override", "s", region="singapore", action="drain", reason="x")
    found = safety.refusals(before, before.changed(2, [drained]), NOW_S)
    [refusal] = [r for r in found if r.rule == "last-region"]
    assert refusal.message == (
        "singapore is all that Route/r000, Route/r001, Route/r002, Route/r003, Route/r004 and "
        "195 more have left: no region would serve them"
    )


async def test_forcing_one_rule_forces_no_other(bench: Bench) -> None:
    await bench.apply(*world())
    both = Wanted(puts=(override("frankfurt"), override("singapore")), force=("residency",))
    with pytest.raises(ChangeRefused, match="--force-last-region"):
        await bench.changes.apply(both, "o/a")
    forced = msgspec.structs.replace(both, force=("residency", "last-region"))
    done = await bench.changes.apply(forced, "o/a")
    audit = await bench.store.get(keys.of_audit(2))
    assert len(msgspec.json.decode(audit.value, type=AuditEntry).forced) == 2
    assert done.applied
