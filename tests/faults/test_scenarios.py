"""The control plane is killed, frozen and cut off under load; a checker looks what came of it.

Whatever happens: no acknowledged write is lost, no refused one visible, none is half there or
from nobody, and no client's request fails for want of a control plane. The order of things is
drawn from a seed, which is printed: `TRADEWIND_FAULT_SEED` repeats a run.
`TRADEWIND_FAULT_ETCD_OUTAGE_S=120`, `TRADEWIND_FAULT_FREEZE_S=20`, `TRADEWIND_FAULT_DRAIN_S=20` and
`TRADEWIND_FAULT_CHAOS_S=300` are the long forms.
"""

from __future__ import annotations

import asyncio
import enum
import os
import shutil
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random

import pytest

from tests.faults.checker import Fate, Journal, Write, mistakes
from tests.faults.conftest import SEED
from tests.faults.load import Load, tenants, under_load
from tests.faults.processes import EDGES, REPLICAS, System, until
from topology.wire.gen.tradewind.v1 import admin_pb2 as pb

pytestmark = pytest.mark.asyncio(loop_scope="session")

OUTAGE_S = float(os.environ.get("TRADEWIND_FAULT_ETCD_OUTAGE_S", "9"))
FREEZE_S = float(os.environ.get("TRADEWIND_FAULT_FREEZE_S", "4"))
DRAIN_S = float(os.environ.get("TRADEWIND_FAULT_DRAIN_S", "5"))
CHAOS_S = float(os.environ.get("TRADEWIND_FAULT_CHAOS_S", "4"))
WRITES_AGAIN_S = 15.0
TAKEOVER_S = 4.0  # 3, and some patience with a machine that is busy with other things

Say = Callable[[str], None]


@asynccontextmanager
async def watched(name: str, system: System, rng: Random, say: Say) -> AsyncIterator[Load]:
    """Load around a scenario, and the checker's verdict after it."""
    say(f"TRADEWIND_FAULT_SEED={SEED}")
    journal = system.journal = Journal(f"{name}-{SEED}", system.journal)
    async with under_load(system, journal, rng) as load:
        await asyncio.sleep(0.5)
        yield load
        await system.heal()
        await writing(load)
    await system.settled()
    found = mistakes(journal, await system.found(), others=frozenset({"control"}))
    say(journal.summary())
    for write in journal.writes:
        if write.fate is Fate.AMBIGUOUS:
            say(f"  {write.reason}: {write.said}")
    assert not found, "\n".join([f"TRADEWIND_FAULT_SEED={SEED}", *found[:30]])
    assert journal.of(Fate.ACKNOWLEDGED)
    assert journal.requests


async def writing(load: Load, more: int = 3) -> float:
    """Wait until writes are acknowledged again; how long that took."""
    before = load.acknowledged
    return await until(lambda: load.acknowledged >= before + more, WRITES_AGAIN_S, "no writes")


async def test_the_director_is_killed_in_the_middle_of_an_apply(
    system: System, rng: Random, say: Say
) -> None:
    async with watched("apply", system, rng, say) as load:
        names = [f"big-{number:02}" for number in range(60)]
        typical_s = (await put_all(system, load, await directing(system), names)).took_s
        for _ in range(2):
            victim = await directing(system)
            writing_big = asyncio.create_task(put_all(system, load, victim, names))
            await asyncio.sleep(rng.uniform(0.0, 1.1) * typical_s)
            await system.supervisor.kill(victim)
            took_s = await until(lambda: another(system, victim), 8.0, "no director")  # noqa: B023
            write = await writing_big
            say(f"  killed in an apply ({write.fate.value}): the next after {took_s:.2f} s")
            assert took_s < TAKEOVER_S
            await writing(load)
            await system.again(victim)


async def test_the_director_is_killed_in_the_middle_of_a_paced_drain(
    system: System, rng: Random, say: Say
) -> None:
    """The next one goes on where it was: never back, to the end."""
    async with watched("drain", system, rng, say) as load:
        reasons = (f"drained {SEED}", f"restored {SEED}")
        load.journal.expected.update(reasons)
        before = await directing(system)
        await asyncio.sleep(1.0)
        # Of two regions that are equally near, the one that carries more.
        served = Counter(request.region for request in load.journal.requests)
        ((busiest, _),) = served.most_common(1)
        order = pb.SetOverrideRequest(
            regions=[busiest], action="drain", percent=100, over_s=DRAIN_S, reason=reasons[0]
        )
        await asyncio.to_thread(system.admins[before].set_override, order)
        begun = loop_time()
        percents: list[float] = []

        async def drained(to: float) -> bool:
            percents.append(await percent_drained(system, busiest))
            return percents[-1] >= to

        await until(lambda: drained(rng.uniform(25, 60)), 2 * DRAIN_S, "the drain does not begin")
        await system.supervisor.kill(before)
        took_s = await until(lambda: another(system, before), 8.0, "no director")
        await until(lambda: drained(100.0), 3 * DRAIN_S + 10, "the drain does not end")
        say(f"  drained in {loop_time() - begun:.1f} s; the next director after {took_s:.2f} s")
        assert took_s < TAKEOVER_S
        assert percents == sorted(percents), "it went back"
        assert loop_time() - begun >= 0.8 * DRAIN_S, "it was paced"
        await system.again(before)
        await asyncio.sleep(1.0)  # for the edges to hear, and requests under way to end
        since = loop_time()
        await asyncio.sleep(1.5)
        late = [r for r in load.journal.requests if r.at_s >= since]
        assert late
        assert busiest not in {request.region for request in late}
        back = pb.ClearOverrideRequest(regions=[busiest], reason=reasons[1])
        await asyncio.to_thread(system.admins[await directing(system)].clear_override, back)
        await until(
            lambda: any(r.region == busiest for r in load.journal.requests if r.at_s > since),
            20.0,
            "nothing goes back",
        )


async def directing(system: System) -> str:
    found: list[str] = []

    async def one() -> bool:
        leader = await system.leader()
        found[:] = [leader] if leader else []
        return bool(leader and system.supervisor.child(leader).running)

    await until(one, 10.0, "nobody directs")
    return found[0]


async def another(system: System, than: str) -> bool:
    """Whether another replica directs, by the store and by its own word."""
    leader = await system.leader()
    if leader is None or leader == than:
        return False
    status = (await system.statuses())[leader]
    return bool(isinstance(status, pb.StatusResponse) and status.director.self)


async def percent_drained(system: System, name: str) -> float:
    for status in (await system.statuses()).values():
        if isinstance(status, pb.StatusResponse):
            for region in status.regions:
                if region.region == name:
                    return region.override_percent
    return 0.0


async def put_all(system: System, load: Load, replica: str, names: list[str]) -> Write:
    """One write at one replica, and nowhere else."""
    write = load.journal.next_write(names)
    request = pb.ApplyRequest(puts=tenants(write), reason=write.reason, force=["many"])
    await load.send(system.loyal[replica], write, request)
    return write


def loop_time() -> float:
    return asyncio.get_running_loop().time()


async def test_etcds_leader_is_killed(system: System, rng: Random, say: Say) -> None:
    async with watched("etcd-leader", system, rng, say) as load:
        for _ in range(2):
            await asyncio.sleep(rng.uniform(0.2, 1.0))
            victim = await system.etcd.leader()
            system.etcd.kill(victim)
            took_s = await writing(load)
            say(f"  etcd's leader killed: writes again after {took_s:.2f} s")
            await system.etcd.restart(victim)


async def test_answers_of_etcd_get_lost(system: System, rng: Random, say: Say) -> None:
    """Writes that were made although nobody was told: each is found out, or said to be unknown."""
    async with watched("lost-answers", system, rng, say):
        system.delay(0.04)
        for _ in range(25):
            await asyncio.sleep(rng.uniform(0.0, 0.25))
            system.cut(rng.choice(REPLICAS))
        system.delay(0.0)


async def test_a_replica_is_cut_off_from_etcd(system: System, rng: Random, say: Say) -> None:
    async with watched("partition", system, rng, say) as load:
        victim = await system.leader() or rng.choice(REPLICAS)
        system.partition(victim)
        await asyncio.sleep(rng.uniform(3.0, 4.0))
        # The others go on; this one says that what it serves may be old, and serves it. Whoever
        # writes through it waits for its etcd meanwhile, which may be every writer of the load.
        await taken_by_others(system, load, victim)
        await until(lambda: away(system, victim), 15.0, "it does not notice")
        assert (await system.status(victim)).stale_since_s
        assert await system.leader() != victim
        system.reconnect(victim)
        await until(lambda: available(system, victim), 15.0, "it stays stale")


async def taken_by_others(system: System, load: Load, victim: str) -> None:
    """Each other replica takes a write."""
    for replica in REPLICAS:
        if replica != victim:
            write = await put_all(system, load, replica, ["probe-a", "probe-b"])
            assert write.fate is Fate.ACKNOWLEDGED, write.said
            assert write.took_s < 5.0


async def away(system: System, replica: str) -> bool:
    return not await available(system, replica)


async def available(system: System, replica: str) -> bool:
    return (await system.status(replica)).store.available


async def test_a_frozen_replica_comes_back(system: System, rng: Random, say: Say) -> None:
    async with watched("frozen", system, rng, say) as load:
        victim = await system.leader() or rng.choice(REPLICAS)
        system.signal(victim, signal.SIGSTOP)
        await asyncio.sleep(FREEZE_S)
        # Those who asked the frozen one wait for it; the other replicas take writes.
        await taken_by_others(system, load, victim)
        leader = await system.leader()
        assert leader != victim
        system.signal(victim, signal.SIGCONT)
        await asyncio.sleep(2.0)
        assert await system.leader() == leader, "it does not take the leadership back"


async def test_every_replica_is_killed(system: System, rng: Random, say: Say) -> None:
    """No control plane at all, and an edge starts meanwhile, from what is on its disk."""
    async with watched("no-control-plane", system, rng, say) as load:
        await asyncio.gather(*(system.supervisor.kill(replica) for replica in REPLICAS))
        await restart_edge(system, load, rng.choice(list(EDGES)), rng)
        await asyncio.sleep(1.0)
        await system.again(*REPLICAS)


async def test_all_of_etcd_is_lost(system: System, rng: Random, say: Say) -> None:
    """Under load, and edges and a replica start anew meanwhile."""
    async with watched("outage", system, rng, say) as load:
        begun = asyncio.get_running_loop().time()
        system.kill_etcd()
        acknowledged = load.acknowledged
        first, second = rng.sample(list(EDGES), 2)
        replica = rng.choice(REPLICAS)

        await asyncio.sleep(OUTAGE_S * rng.uniform(0.05, 0.2))
        await restart_edge(system, load, first, rng)
        await system.supervisor.kill(replica)
        await asyncio.sleep(rng.uniform(0.0, 1.0))
        await system.again(replica)
        # It serves what it had, says since when, and takes no writes.
        await until(lambda: serves_stale(system, replica), 20.0, "it does not serve")
        # This one has no disk: it learns everything from replicas that are stale themselves.
        await restart_edge(system, load, second, rng, empty=True)
        left_s = OUTAGE_S - (asyncio.get_running_loop().time() - begun)
        await asyncio.sleep(max(0.0, left_s))
        assert load.acknowledged - acknowledged <= 3, "those that were on their way"
        statuses = await system.statuses()
        assert all(status.stale_since_s for status in statuses.values())  # type: ignore[union-attr]
        await system.etcd.start()
        took_s = await writing(load)
        lasted_s = asyncio.get_running_loop().time() - begun - took_s
        say(f"  etcd away for {lasted_s:.0f} s: writes again {took_s:.2f} s after it was back")


async def test_one_thing_after_another(system: System, rng: Random, say: Say) -> None:
    """Faults drawn at random, which overlap; none is mended before the next comes."""
    async with watched("chaos", system, rng, say) as load:
        end = loop_time() + CHAOS_S
        done: list[str] = []
        while loop_time() < end:
            done.append(await hurt(system, load, rng))
            await asyncio.sleep(rng.uniform(0.1, 1.5))
        say(f"  {len(done)} faults: {', '.join(done)}")


class Fault(enum.Enum):
    """What may happen next, each as likely as any other."""

    KILL = "kill"
    STOP = "stop"
    FREEZE = "freeze"
    THAW = "thaw"
    PARTITION = "partition"
    RECONNECT = "reconnect"
    CUT = "cut"
    START = "start the replicas"
    MEMBER = "kill member"
    FREEZE_MEMBER = "freeze member"
    THAW_MEMBER = "thaw member"
    ETCD = "start etcd"
    EDGE = "restart edge"


async def hurt(system: System, load: Load, rng: Random) -> str:
    """Do one thing to something that runs, or undo one; what was done."""
    replica, member, edge = rng.choice(REPLICAS), rng.randrange(3), rng.choice(list(EDGES))
    runs = system.supervisor.child(replica).running
    what = rng.choice(list(Fault))
    match what:
        case Fault.KILL:
            await system.supervisor.kill(replica)
        case Fault.STOP if runs:
            system.signal(replica, signal.SIGCONT)
            await stop(system, replica)
        case Fault.FREEZE if runs:
            system.signal(replica, signal.SIGSTOP)
        case Fault.THAW if runs:
            system.signal(replica, signal.SIGCONT)
        case Fault.PARTITION:
            system.partition(replica)
        case Fault.RECONNECT:
            system.reconnect(replica)
        case Fault.CUT:
            system.cut(replica)
        case Fault.START:
            await system.again(*REPLICAS)
        case Fault.MEMBER:
            system.etcd.kill(member)
        case Fault.FREEZE_MEMBER if system.etcd.running(member):
            system.etcd.freeze(member)
        case Fault.THAW_MEMBER if system.etcd.running(member):
            system.etcd.thaw(member)
        case Fault.ETCD:
            for index in filter(system.etcd.running, range(3)):
                system.etcd.thaw(index)
            await system.etcd.start()
        case Fault.EDGE:
            await restart_edge(system, load, edge, rng)
        case _:
            return "nothing"
    about = {Fault.EDGE: edge, Fault.ETCD: "", Fault.START: ""}.get(what, replica)
    return f"{what.value} {member if 'member' in what.value else about}".strip()


async def serves_stale(system: System, replica: str) -> bool:
    status = (await system.statuses())[replica]
    return bool(getattr(status, "revision", 0) and getattr(status, "stale_since_s", 0.0))


async def restart_edge(
    system: System, load: Load, edge: str, rng: Random, empty: bool = False
) -> None:
    """Killed or stopped in order, and started again, at times without anything on its disk."""
    load.edge_down(edge)
    if rng.random() < 0.5 and not empty:
        await stop(system, f"edge-{edge}")
    else:
        await system.supervisor.kill(f"edge-{edge}")
    if empty:
        state = system.folder / "state" / f"edge-{edge}"
        shutil.rmtree(state)
        state.mkdir()
    await system.again(f"edge-{edge}")
    await system.serving(edge)
    load.edge_up(edge)


async def stop(system: System, name: str) -> None:
    """In order, and it must come to an end whatever else is broken."""
    child = system.supervisor.child(name)
    child.expected_to_die = True
    system.signal(name, signal.SIGTERM)
    await asyncio.wait_for(child.process.wait(), 10)
