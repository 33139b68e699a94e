"""Rollouts in the store: what begins one, what nodes are served meanwhile, how one ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from control_plane import keys, rollout_record
from control_plane.catalog import Catalog
from control_plane.changes.apply import Applied, Changes
from control_plane.changes.errors import RULES, ChangeRefused, UnknownResource
from control_plane.changes.history import HistoryEntry
from control_plane.changes.plan import Wanted
from control_plane.changes.rollouts import Rollouts
from control_plane.directives.observed import NodeState, Observed
from control_plane.rollout_record import RolloutRecord, snapshot_before
from control_plane.store.base import Delete, Guard, Operation, Put
from control_plane.store.errors import Conflict
from control_plane.store.memory import MemoryStore
from runtime.clock import ManualClock
from runtime.validation import InvalidDocument
from tests.control_plane.mesh import region, resource, world
from topology.resources import Key, Resource
from topology.snapshot import Snapshot

NOW_S = 1_700_000_000.0
STAGED = {
    "canaries": ["tokyo"],
    "canary_percent": 0,
    "canary_hold_s": 10,
    "steps": [100],
    "step_hold_s": 5,
}


class Bench:
    """One replica, less its sockets; its director acts when it is told to."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.clock = ManualClock(wall=NOW_S)
        self.catalog = Catalog(store, None, self.clock, Random(1))
        self.changes = Changes(store, self.catalog, self.clock, "cp-1")
        self.rollouts = Rollouts(store, self.catalog, self.changes, self.clock, "cp-1")
        self.term = Guard(keys.LEADER, 0)

    async def apply(self, *puts: Resource, **wanted: Any) -> Applied:
        return await self.changes.apply(Wanted(puts=puts, **wanted), "operator/alice")

    async def direct(self, offset_s: float, *nodes: NodeState) -> RolloutRecord:
        now_s = NOW_S + offset_s
        seen = Observed(now_s, nodes={node.node: node for node in nodes})
        await self.rollouts.advance(seen, now_s, self.term)
        return await self.record()

    async def record(self) -> RolloutRecord:
        entry = await self.store.get(keys.ROLLOUT)
        assert entry is not None
        await self.catalog.reached(entry.revision, 1.0)
        view = self.catalog.view
        assert view.rollout is not None
        assert view.rollout_revision == entry.revision
        return view.rollout

    @property
    def before(self) -> Snapshot:
        """What nodes beyond the stage are served."""
        assert self.catalog.view.rollout is not None
        return snapshot_before(self.catalog.view.rollout, self.catalog.view.snapshot)


def policy(**rollout: Any) -> Resource:
    return resource("Policy", "default", rollout=STAGED | rollout)


def smaller(capacity: int = 7) -> Resource:
    return region("frankfurt", "EU", latitude=50.1, longitude=8.7, capacity_tokens_per_s=capacity)


def override(name: str = "singapore", percent: float = 30.0) -> Resource:
    return resource(
        "Override", name, region=name, action="drain", reason="upgrade", percent=percent
    )


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench(MemoryStore())
    made.catalog.start()
    await made.apply(*world(), policy())
    yield made
    await made.catalog.close()


async def test_a_change_is_staged_in_its_own_transaction(bench: Bench) -> None:
    before = bench.catalog.view.snapshot
    done = await bench.apply(smaller(), reason="less power")
    assert done.plan.staged
    entry = await bench.store.get(keys.ROLLOUT)
    assert entry is not None and entry.revision == done.revision
    record = await bench.record()
    assert (record.number, record.revision, record.status) == (2, done.revision, "canary")
    assert (record.author, record.reason) == ("operator/alice", "less power")
    assert record.keys == (Key("Region", "frankfurt"),)
    view = bench.catalog.view
    assert view.snapshot.regions["frankfurt"].capacity_tokens_per_s == 7
    assert bench.before.regions["frankfurt"].capacity_tokens_per_s == 100
    assert set(bench.before) == set(before)
    assert bench.before.revision == before.revision < view.snapshot.revision


async def test_what_is_not_staged(bench: Bench) -> None:
    assert not (await bench.apply(override())).plan.staged
    assert not (await bench.apply(smaller(), immediate=True)).plan.staged
    assert bench.catalog.view.rollout is None
    fresh = Bench(MemoryStore())
    fresh.catalog.start()
    assert not (await fresh.apply(policy(canaries=[]))).plan.staged
    assert not (await fresh.apply(*world())).plan.staged, "there was nothing to serve before"
    assert (await fresh.apply(smaller())).plan.staged
    await fresh.catalog.close()


async def test_a_dry_run_says_that_it_would_be(bench: Bench) -> None:
    plan = await bench.changes.plan(Wanted(puts=(smaller(),)))
    assert plan.staged
    assert await bench.store.get(keys.ROLLOUT) is None


async def test_overrides_hold_everywhere_at_once_even_during_one(bench: Bench) -> None:
    await bench.apply(smaller(), override("frankfurt", 20.0), force=("residency",))
    assert set(bench.before.overrides) == {"frankfurt"}
    done = await bench.apply(override(), force=("last-region",))
    assert set(bench.before.overrides) == {"frankfurt", "singapore"}
    assert bench.before.revision == done.revision, "nodes that wait acknowledge it as well"
    assert bench.before.regions["frankfurt"].capacity_tokens_per_s == 100


async def test_an_override_on_a_region_that_only_the_change_brings(bench: Bench) -> None:
    await bench.apply(region("dubai", "AE"))
    await bench.apply(override("dubai"))
    assert "dubai" not in bench.before.regions
    assert not bench.before.overrides
    await bench.rollouts.control("abort", "", "operator/bob")
    await bench.record()
    assert not bench.catalog.view.snapshot.overrides
    assert "dubai" not in bench.catalog.view.snapshot.regions


async def test_another_change_meanwhile_is_refused_by_name(bench: Bench) -> None:
    await bench.apply(smaller(), reason="less power")
    with pytest.raises(ChangeRefused, match=r"change 2 by operator/alice \(less power\) is being"):
        await bench.apply(resource("Tenant", "acme"))
    with pytest.raises(ChangeRefused, match="rollout"):
        await bench.apply(resource("Tenant", "acme"), immediate=True)
    [refusal] = (await bench.changes.plan(Wanted(puts=(resource("Tenant", "acme"),)))).refusals
    assert refusal.rule == "rollout"


async def test_the_audit_tells_who_paused_resumed_and_promoted_and_why(bench: Bench) -> None:
    await bench.apply(smaller())
    for action, reason in (("pause", "looking"), ("resume", ""), ("promote", "it mends")):
        await bench.rollouts.control(action, reason, f"operator/{action}")
    found, _ = await bench.changes.archive.page(3)
    assert [(kept.audit.author, kept.audit.reason) for kept in found if kept.audit] == [
        ("operator/promote", "rollout of change 2: promoted by operator/promote: it mends"),
        ("operator/resume", "rollout of change 2: resumed"),
        ("operator/pause", "rollout of change 2: paused by operator/pause: looking"),
    ]
    assert all(kept.history is not None and not kept.history.changes for kept in found)
    assert (await bench.changes.archive.verify()).intact
    record = await bench.record()
    assert (record.status, record.number) == ("done", 2)
    assert await bench.changes.plan_rollback(found[0].revision, Wanted()) is not None


async def test_no_more_joins_than_can_be_taken_back_at_once(bench: Bench) -> None:
    def tenants(first: int, tier: str = "standard") -> list[Resource]:
        return [resource("Tenant", f"t{n:03d}", tier=tier) for n in range(first, first + 70)]

    await bench.apply(*tenants(0))
    force = ("rollout", "many")
    with pytest.raises(InvalidDocument, match="140 resources together with the rollout"):
        await bench.apply(*tenants(70), force=force)
    assert "t070" not in bench.catalog.view.snapshot.tenants
    await bench.apply(*tenants(30, "vip"), force=force)  # a hundred in all
    await bench.rollouts.control("abort", "", "operator/bob")
    await bench.record()
    assert set(bench.catalog.view.snapshot.tenants) == {"acme", "globex", "eurobank"}


async def test_a_change_that_just_fits_can_be_taken_back(bench: Bench) -> None:
    """What was before is in the record while nodes are served it, and in history."""
    keys_of = [[f"sha256:{n:032x}{k:032x}" for k in range(64)] for n in range(100)]
    many = [resource("Tenant", f"t{n:03d}", api_keys=held) for n, held in enumerate(keys_of)]
    await bench.apply(*many, immediate=True)
    removes = tuple(Key("Tenant", f"t{n:03d}") for n in range(100))
    await bench.apply(removes=removes, force=("many",))
    await bench.rollouts.control("abort", "", "operator/bob")
    record = await bench.record()
    assert len(bench.catalog.view.snapshot.tenants) == 103
    assert (record.status, set(record.before.values()), len(record.keys)) == (
        "aborted",
        {None},
        100,
    )


async def test_a_forced_one_joins_and_is_taken_back_with_it(bench: Bench) -> None:
    first = await bench.apply(smaller())
    done = await bench.apply(resource("Tenant", "acme", tier="batch"), force=("rollout",))
    await bench.apply(smaller(5), force=("rollout",))
    record = await bench.record()
    assert (record.number, record.joined) == (2, (3, 4))
    assert record.revision > done.revision > first.revision
    assert bench.before.tenants["acme"].tier == "vip"
    assert bench.before.regions["frankfurt"].capacity_tokens_per_s == 100
    await bench.rollouts.control("abort", "", "operator/bob")
    await bench.record()
    assert bench.catalog.view.snapshot.tenants["acme"].tier == "vip"
    assert bench.catalog.view.snapshot.regions["frankfurt"].capacity_tokens_per_s == 100


async def test_a_forced_and_immediate_one_is_for_all_and_stays(bench: Bench) -> None:
    await bench.apply(smaller())
    await bench.apply(
        resource("Tenant", "acme", tier="batch"),
        smaller(90),
        force=("rollout",),
        immediate=True,
    )
    assert bench.before.tenants["acme"].tier == "batch"
    assert bench.before.regions["frankfurt"].capacity_tokens_per_s == 90
    await bench.rollouts.control("abort", "", "operator/bob")
    await bench.record()
    assert bench.catalog.view.snapshot.tenants["acme"].tier == "batch"
    assert bench.catalog.view.snapshot.regions["frankfurt"].capacity_tokens_per_s == 90


async def test_an_immediate_one_that_would_not_fit_those_who_wait_is_refused(
    bench: Bench,
) -> None:
    await bench.apply(region("dubai", "AE"))
    moves = resource("Route", "acme", models=["*"], tenants=["acme"], regions=["dubai"])
    with pytest.raises(InvalidDocument, match="Region 'dubai'"):
        await bench.apply(moves, force=("rollout",), immediate=True)
    await bench.apply(moves, force=("rollout",))


def node(name: str, acked: int, **fields: Any) -> NodeState:
    return NodeState(node=name, connected=True, since_s=NOW_S, acked_revision=acked, **fields)


async def test_the_director_carries_it_to_the_end(bench: Bench) -> None:
    done = await bench.apply(smaller())
    has, lacks = node("edge/tokyo", done.revision), node("edge/london", done.revision - 1)
    snapshot = bench.catalog.view.snapshot
    for second in range(0, 13, 3):
        record = await bench.direct(second, has, lacks)
    assert (record.status, record.percent) == ("rolling", 100.0)
    for second in range(15, 30, 3):
        record = await bench.direct(second, has, lacks)
    assert record.why == "waits for edge/london to take it up"
    record = await bench.direct(30, has, node("edge/london", done.revision))
    assert record.status == "done"
    assert bench.catalog.view.snapshot is snapshot, "its own steps are no change of resources"
    assert not (await bench.apply(override())).plan.staged
    assert (await bench.apply(smaller(8))).plan.staged


async def test_a_refusal_takes_it_back_as_a_change_of_its_own(bench: Bench) -> None:
    done = await bench.apply(smaller(), region("dubai", "AE"))
    refuses = node("edge/tokyo", 1, nack_revision=done.revision, nack_reason="no such place")
    record = await bench.direct(1, refuses)
    assert (record.status, record.why) == ("rolled-back", "edge/tokyo refuses it: no such place")
    view = bench.catalog.view
    assert view.snapshot.regions["frankfurt"].capacity_tokens_per_s == 100
    assert "dubai" not in view.snapshot.regions
    assert view.snapshot.revision == view.rollout_revision, "one transaction"
    entry = await bench.store.get(keys.of_history(3))
    assert entry is not None
    history = msgspec.json.decode(entry.value, type=HistoryEntry)
    assert history.author == "control/cp-1"
    assert history.reason == "rollout of change 2: edge/tokyo refuses it: no such place"


async def test_it_is_taken_back_although_that_breaks_a_rule(bench: Bench) -> None:
    """40% of the tenants change: nobody is there to force that."""
    more = [resource("Tenant", f"t-{index}", tier="vip") for index in range(3)]
    await bench.apply(*more, immediate=True)
    wanted = [resource("Tenant", tenant.name, tier="batch") for tenant in more]
    done = await bench.apply(*wanted, force=("many",))
    refuses = node("edge/tokyo", 1, nack_revision=done.revision, nack_reason="no")
    assert (await bench.direct(1, refuses)).status == "rolled-back"
    assert {t.tier for n, t in bench.catalog.view.snapshot.tenants.items() if n[0] == "t"} == {
        "vip"
    }


async def test_a_deposed_director_writes_nothing(bench: Bench) -> None:
    done = await bench.apply(smaller())
    await bench.store.transact([], [Put(keys.LEADER, b"another")])
    refuses = node("edge/tokyo", 1, nack_revision=done.revision, nack_reason="no")
    with pytest.raises(Conflict):
        await bench.direct(1, refuses)
    for _ in range(4):
        with pytest.raises(Conflict):
            await bench.direct(20, node("edge/tokyo", done.revision))
    assert (await bench.record()).status == "canary"
    assert bench.catalog.view.snapshot.regions["frankfurt"].capacity_tokens_per_s == 7


async def test_pause_resume_promote(bench: Bench) -> None:
    done = await bench.apply(smaller())
    has = node("edge/tokyo", done.revision)
    told = await bench.rollouts.control("pause", "looking", "operator/bob")
    assert (told.status, told.why) == ("paused", "paused by operator/bob: looking")
    for second in range(0, 60, 3):
        record = await bench.direct(second, has)
    assert (record.status, record.paused_by) == ("paused", "operator/bob")
    assert (await bench.rollouts.control("pause", "", "operator/eve")).why == told.why
    bench.clock.advance(60.0)
    told = await bench.rollouts.control("resume", "", "operator/bob")
    assert (told.status, told.why, told.next_step_s) == ("canary", "", NOW_S + 70.0)
    told = await bench.rollouts.control("promote", "urgent", "operator/bob")
    assert (told.status, told.percent) == ("done", 100.0)
    assert (await bench.record()).has("edge/anybody")


async def test_status_counts_nodes(bench: Bench) -> None:
    assert not bench.rollouts.status().exists
    done = await bench.apply(smaller())
    await bench.record()
    told = bench.rollouts.status()
    assert (told.exists, told.number, told.nodes, told.error_rate_with) == (True, 2, 0, -1.0)
    gone = msgspec.structs.replace(node("edge/gone", done.revision), connected=False)
    await bench.direct(1, node("edge/tokyo", done.revision), node("edge/london", 1), gone)
    told = bench.rollouts.status()
    assert (told.nodes, told.nodes_due, told.nodes_with) == (2, 1, 1)
    assert [(key.kind, key.name) for key in told.keys] == [("Region", "frankfurt")]
    assert told.next_step_s == NOW_S + 10.0


async def test_after_the_store_was_wiped_it_says_that_it_stands_still(bench: Bench) -> None:
    await bench.apply(smaller())
    await bench.record()
    listing = await bench.store.list("/tradewind/")
    wiped = await bench.store.transact([], [Delete(entry.key) for entry in listing.entries])
    await bench.catalog.reached(wiped, 1.0)
    told = bench.rollouts.status()
    assert (told.status, told.next_step_s) == ("canary", 0.0)
    assert "the store was wiped" in told.why


async def test_bad_controls(bench: Bench) -> None:
    with pytest.raises(UnknownResource, match="no rollout is under way"):
        await bench.rollouts.control("abort", "", "operator/bob")
    with pytest.raises(InvalidDocument, match="pause, resume, promote, abort"):
        await bench.rollouts.control("stop", "", "operator/bob")
    await bench.apply(smaller())
    await bench.rollouts.control("promote", "", "operator/bob")
    with pytest.raises(UnknownResource):
        await bench.rollouts.control("abort", "too late", "operator/bob")


class Interrupted(MemoryStore):
    """Somebody else writes the rollout just before our transaction."""

    between: Operation | None = None

    async def transact(self, guards: Any, operations: Any) -> int:
        if self.between is not None and any(o.key == keys.ROLLOUT for o in operations):
            between, self.between = self.between, None
            await super().transact([], [between])
        return await super().transact(guards, operations)


async def test_the_operator_and_the_director_do_not_undo_each_other() -> None:
    store = Interrupted()
    bench = Bench(store)
    bench.catalog.start()
    await bench.apply(*world(), policy())
    done = await bench.apply(smaller())
    record = await bench.record()
    widened = msgspec.structs.replace(record, percent=50.0, status="rolling", step=1)
    store.between = Put(keys.ROLLOUT, rollout_record.encode(widened))
    told = await bench.rollouts.control("pause", "", "operator/bob")
    assert (told.status, told.percent) == ("paused", 50.0), "it looked again"
    record = await bench.record()
    aborted = msgspec.structs.replace(record, status="aborted")
    store.between = Put(keys.ROLLOUT, rollout_record.encode(aborted))
    refuses = node("edge/tokyo", 1, nack_revision=done.revision, nack_reason="no")
    assert (await bench.direct(1, refuses)).status == "aborted", "the operator was quicker"
    await bench.catalog.close()


async def test_a_damaged_record_is_told_and_counts_as_none(bench: Bench) -> None:
    await bench.apply(smaller())
    snapshot = bench.catalog.view.snapshot
    revision = await bench.store.transact([], [Put(keys.ROLLOUT, b'{"number": "x"}')])
    await bench.catalog.reached(revision, 1.0)
    view = bench.catalog.view
    assert (view.rollout, view.rollout_revision, view.snapshot) == (None, revision, snapshot)
    assert [problem.source for problem in view.problems] == [keys.ROLLOUT]
    assert (await bench.apply(smaller(9))).plan.staged, "the next change mends it"
    await bench.record()
    assert not bench.catalog.view.problems


async def test_a_replica_that_restarts_without_the_store_still_knows_who_waits(
    tmp_path: Path,
) -> None:
    store = MemoryStore()
    bench = Bench(store)
    kept = tmp_path / "last-good"
    bench.catalog = Catalog(store, kept, bench.clock, Random(1))
    bench.changes = Changes(store, bench.catalog, bench.clock, "cp-1")
    bench.catalog.start()
    await bench.apply(*world(), policy())
    await bench.apply(smaller())
    record = await bench.record()
    await bench.catalog.close()
    down = MemoryStore()
    down.cut()
    again = Catalog(down, kept, bench.clock, Random(1))
    again.start()
    try:
        assert again.view.rollout == record
        assert not again.view.rollout.has("edge/london")
        before = snapshot_before(record, again.view.snapshot)
        assert before.regions["frankfurt"].capacity_tokens_per_s == 100
    finally:
        await again.close()


class Oracle:
    """What all nodes, and what nodes that wait, are to be served: kept by hand."""

    def __init__(self, held: dict[Key, object]) -> None:
        self.head = dict(held)
        self.before = dict(held)
        self.under_way = False

    def change(self, key: Key, spec: object | None, *, immediate: bool) -> None:
        waits = key.kind != "Override" and not immediate
        self.under_way = self.under_way or waits
        for world_ in (self.head,) if waits else (self.head, self.before):
            world_.pop(key, None)
            if spec is not None:
                world_[key] = spec

    def end(self, action: str) -> None:
        self.under_way = False
        self.head = dict(self.before if action == "abort" else self.head)
        self.before = dict(self.head)


def specs(snapshot: Snapshot) -> dict[Key, object]:
    return {resource.key: resource.spec for resource in snapshot}


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_operators_do_nodes_that_wait_are_served_what_was_before(
    bench: Bench, seed: int
) -> None:
    rng = Random(seed)
    await bench.catalog.reached(bench.store.revision, 1.0)
    oracle = Oracle(specs(bench.catalog.view.snapshot))
    for _ in range(25):
        if oracle.under_way and rng.random() < 0.15:
            action = rng.choice(["abort", "promote"])
            await bench.rollouts.control(action, "", "operator/bob")
            oracle.end(action)
        else:
            await one_change(bench, oracle, rng)
        await bench.catalog.reached(bench.store.revision, 1.0)
        view = bench.catalog.view
        assert specs(view.snapshot) == oracle.head
        assert (view.rollout is not None and view.rollout.under_way) is oracle.under_way
        if oracle.under_way:
            assert specs(bench.before) == oracle.before


async def one_change(bench: Bench, oracle: Oracle, rng: Random) -> None:
    """One resource is put or removed, in whichever way is allowed."""
    immediate = rng.random() < 0.3
    if rng.random() < 0.25:
        put = override(rng.choice(["singapore", "frankfurt"]), rng.choice([10.0, 20.0]))
    else:
        tier = rng.choice(["vip", "standard", "batch"])
        put = resource("Tenant", rng.choice(["t-1", "t-2", "t-3"]), tier=tier)
    key, spec = put.key, put.spec
    wanted = Wanted(puts=(put,), immediate=immediate, force=RULES)
    if key in oracle.head and rng.random() < 0.4:
        spec = None
        wanted = msgspec.structs.replace(wanted, puts=(), removes=(key,))
    if oracle.head.get(key) == spec:
        return
    await bench.changes.apply(wanted, "operator/alice")
    oracle.change(key, spec, immediate=immediate)
