"""Who directs: in virtual time over the memory store, and for real over etcd."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from random import Random

import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane import keys
from control_plane.director.election import MARGIN, Election, Leader, NotLeading
from control_plane.store.base import Delete, Guard, Put, Store
from control_plane.store.errors import Conflict, StoreUnavailable
from control_plane.store.etcd import EtcdSettings, EtcdStore
from control_plane.store.memory import MemoryStore
from lab.etcd_cluster import EtcdCluster
from runtime.clock import SystemClock
from tests.director import virtual
from tests.director.distant import DistantStore
from tests.director.virtual import LoopClock
from tests.store.proxy import Proxy
from tests.store.worlds import free_ports

TTL_S = 2.0
STATE = keys.DIRECTOR_STATE


async def until(what: Callable[[], object], timeout_s: float) -> float:
    """Wait until `what()` is true, or fail; how long that took."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    while not what():
        assert loop.time() < begun + timeout_s, "waited in vain"
        await asyncio.sleep(0.005)
    return loop.time() - begun


async def kill(election: Election) -> None:
    """End it as SIGKILL would: nobody is told."""
    for task in election._tasks:
        task.cancel()
    await asyncio.gather(*election._tasks, return_exceptions=True)


class Candidate:
    """A replica's election behind a line of its own, with a clock of its own."""

    def __init__(self, name: str, store: Store, rng: Random, rate: float = 1.0) -> None:
        self.name = name
        self.clock = LoopClock(origin_s=rng.uniform(0, 1000), rate=rate)
        self.line = DistantStore(store, rng)
        self.election = Election(self.line, name, TTL_S, self.clock, rng)
        self.said: list[tuple[bool, str]] = []
        self.election.on_change(self._note)
        self.election.start()

    def _note(self) -> None:
        leader = self.election.leader
        self.said.append((self.leads, leader.name if leader else ""))

    @property
    def leads(self) -> bool:
        return self.election.leading is not None


@asynccontextmanager
async def candidates(
    count: int, seed: int = 1
) -> AsyncIterator[tuple[MemoryStore, list[Candidate]]]:
    rng = Random(seed)
    store = MemoryStore(LoopClock())
    here = [Candidate(f"cp-{i}", store, Random(rng.random())) for i in range(count)]
    yield store, here
    for candidate in here:
        candidate.line.cut = False
        candidate.line.thaw()
    await asyncio.gather(*(candidate.election.close() for candidate in here))
    await store.close()


def in_virtual_time(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    def wrapper() -> None:
        virtual.run(test())  # type: ignore[arg-type]

    wrapper.__name__ = test.__name__
    wrapper.__doc__ = test.__doc__
    return wrapper


def the_leader(here: list[Candidate]) -> Candidate | None:
    leading = [candidate for candidate in here if candidate.leads]
    assert len(leading) <= 1
    return leading[0] if leading else None


async def elected(here: list[Candidate], timeout_s: float = 1.0) -> Candidate:
    await until(lambda: the_leader(here), timeout_s)
    leader = the_leader(here)
    assert leader is not None
    return leader


@in_virtual_time
async def test_one_is_elected_and_all_know_it() -> None:
    async with candidates(3) as (store, here):
        leader = await elected(here)
        await until(lambda: all(c.election.leader is not None for c in here), 1.0)
        entry = await store.get(keys.LEADER)
        assert entry is not None
        assert entry.lease
        claim = json.loads(entry.value)
        assert claim["replica"] == leader.name
        expected = Leader(leader.name, entry.revision, claim["since_s"])
        assert [c.election.leader for c in here] == [expected] * 3
        term = leader.election.leading
        assert term is not None
        assert (term.revision, term.lease, term.since_s) == (
            entry.revision, entry.lease, claim["since_s"],
        )  # fmt: skip
        assert leader.election.guard() == Guard(keys.LEADER, entry.revision)
        for other in here:
            if other is not leader:
                with pytest.raises(NotLeading, match=f"{leader.name} does"):
                    other.election.guard()
        # It stays for as long as all is well.
        await asyncio.sleep(120)
        assert the_leader(here) is leader
        assert await store.get(keys.LEADER) == entry
        # The watch may have told before the store had answered.
        assert [said for said in leader.said if said[0]] == [(True, leader.name)]
        figures = {
            s.name.removeprefix("tradewind_director_"): s.value for s in leader.election.samples()
        }
        assert figures == {"leading": 1, "term": entry.revision, "changes_total": 1}


@in_virtual_time
async def test_closing_hands_over_at_once() -> None:
    async with candidates(3) as (_, here):
        for _ in range(3):
            leader = await elected(here, 0.5)
            await leader.election.close()
            assert not leader.leads
            assert leader.said[-1][0] is False
            here.remove(leader)


@pytest.mark.parametrize("seed", range(10))
def test_a_killed_director_is_replaced_within_three_seconds(seed: int) -> None:
    async def test() -> None:
        async with candidates(3, seed) as (_, here):
            leader = await elected(here)
            await asyncio.sleep(Random(seed).uniform(1, 2))
            await kill(leader.election)
            here.remove(leader)
            assert not the_leader(here)
            took_s = await until(lambda: the_leader(here), 3.0)
            assert took_s >= TTL_S - 0.6  # never before the dead one's lease has ended

    virtual.run(test())


@in_virtual_time
async def test_a_frozen_director_wakes_up_deposed_and_cannot_write() -> None:
    async with candidates(2) as (store, here):
        old = await elected(here)
        guard = old.election.guard()
        await old.line.transact([guard], [Put(STATE, b"old")])
        old.line.freeze()
        await until(lambda: not old.leads, TTL_S * (1 - MARGIN) + 0.01)
        with pytest.raises(NotLeading):
            old.election.guard()
        new = await elected(here, 2.0)
        assert new is not old
        await new.line.transact([new.election.guard()], [Put(STATE, b"new")])
        await asyncio.sleep(20)
        assert not old.leads
        old.line.thaw()
        with pytest.raises(Conflict) as caught:
            await old.line.transact([guard], [Put(STATE, b"too late")])
        assert caught.value.keys == (keys.LEADER,)
        await until(lambda: old.election.leader == new.election.leader, 1.0)
        assert old.said[-1] == (False, new.name)
        await asyncio.sleep(30)
        assert the_leader(here) is new
        entry = await store.get(STATE)
        assert entry is not None
        assert entry.value == b"new"


@in_virtual_time
async def test_a_term_goes_on_after_the_store_was_away() -> None:
    """Nobody else can have been elected; and etcd's leases stand still while it is down."""
    async with candidates(3) as (store, here):
        leader = await elected(here)
        term = leader.election.leading
        store.cut()
        await until(lambda: not leader.leads, TTL_S)
        await asyncio.sleep(120)
        assert not any(candidate.leads for candidate in here)
        assert all(c.election.leader and c.election.leader.name == leader.name for c in here)
        store.mend()
        await until(lambda: the_leader(here), 1.0)
        assert the_leader(here) is leader
        assert leader.election.leading == term
        assert [leads for leads, _ in leader.said][-3:] == [True, False, True]
        await leader.line.transact([leader.election.guard()], [Put(STATE, b"on")])


@in_virtual_time
async def test_a_cut_off_director_is_replaced_and_comes_back_as_another() -> None:
    async with candidates(2) as (_, here):
        old = await elected(here)
        old.line.cut = True
        new = await elected([c for c in here if c is not old], 3.0)
        assert not old.leads
        await asyncio.sleep(10)
        old.line.cut = False
        await until(lambda: old.election.leader == new.election.leader, 2.0)
        assert the_leader(here) is new


@in_virtual_time
async def test_a_director_whose_key_somebody_removes_stops_at_once() -> None:
    async with candidates(1) as (store, here):
        (leader,) = here
        await elected(here)
        term = leader.election.leading
        assert term is not None
        await store.transact([], [Delete(keys.LEADER)])
        await until(lambda: not leader.leads, 0.1)
        await elected(here)  # under a new term
        again = leader.election.leading
        assert again is not None
        assert again.revision > term.revision
        assert again.lease != term.lease
        # What others write there is respected: somebody may wish that nobody directs.
        await store.transact([], [Put(keys.LEADER, b"hands off")])
        await until(lambda: not leader.leads, 0.1)
        await asyncio.sleep(30)
        assert not leader.leads
        assert leader.election.leader is not None
        assert leader.election.leader.name == ""
        await store.transact([], [Delete(keys.LEADER)])
        await elected(here)


@in_virtual_time
async def test_answers_that_get_lost_leave_nobody_behind() -> None:
    """A claim of unknown outcome is taken back, so that it cannot block the key."""
    store = MemoryStore(LoopClock())
    for seed in range(20):
        rng = Random(seed)
        candidate = Candidate("cp", store, rng)
        candidate.line.lossy = 0.6
        await asyncio.sleep(20)
        candidate.line.lossy = 0.0
        await until(lambda: candidate.leads, 3.0)  # noqa: B023
        await candidate.election.close()
        assert await store.get(keys.LEADER) is None
    await store.close()


Step = tuple[str, int, float]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["freeze", "thaw", "cut", "mend", "slow", "lossy", "well", "restart", "outage"]
        ),
        st.integers(0, 2),
        st.floats(0.05, 4.0),
    ),
    max_size=14,
)


@settings(max_examples=150)
@given(STEPS, st.integers(0, 2**31), st.tuples(*[st.floats(0.92, 1.08)] * 3))
def test_never_do_two_lead(steps: list[Step], seed: int, rates: tuple[float, ...]) -> None:
    """By their own clocks, however these run (within the margin), and whatever happens to the
    lines; no write of a deposed director is applied; and when all is well, one leads."""
    virtual.run(_story(steps, Random(seed), rates))


async def _story(steps: list[Step], rng: Random, rates: tuple[float, ...]) -> None:
    store = MemoryStore(LoopClock())
    here = [Candidate(f"cp-{i}", store, Random(rng.random()), r) for i, r in enumerate(rates)]
    tasks = [asyncio.create_task(_check(here))]
    tasks += [asyncio.create_task(_direct(c, Random(rng.random()))) for c in here]
    for what, index, pause_s in steps:
        candidate = here[index]
        line = candidate.line
        match what:
            case "freeze":
                line.freeze()
            case "thaw":
                line.thaw()
            case "cut":
                line.cut = True
            case "mend":
                line.cut = False
            case "slow":
                line.typical_s = 0.8
            case "lossy":
                line.lossy = 0.5
            case "well":
                line.typical_s, line.lossy = 0.005, 0.0
            case "restart":
                await kill(candidate.election)
                rate = rates[index]
                here[index] = Candidate(candidate.name, store, Random(rng.random()), rate)
                tasks.append(asyncio.create_task(_direct(here[index], Random(rng.random()))))
            case "outage":
                store.cut()
                await asyncio.sleep(pause_s)
                store.mend()
        await asyncio.sleep(pause_s)
    for candidate in here:
        candidate.line.thaw()
        candidate.line.cut, candidate.line.typical_s, candidate.line.lossy = False, 0.005, 0.0
    await until(lambda: the_leader(here), 6.0)
    for task in tasks:
        assert not task.done(), task
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.gather(*(candidate.election.close() for candidate in here))
    await _check_writes(store)
    await store.close()


async def _check(here: list[Candidate]) -> None:
    while True:
        the_leader(here)
        await asyncio.sleep(0.007)


async def _direct(candidate: Candidate, rng: Random) -> None:
    """Write as a director does: read, think (long, at times), write under the guard."""
    while True:
        await asyncio.sleep(0.1)
        term = candidate.election.leading
        if term is None:
            continue
        try:
            guard = candidate.election.guard()
            await asyncio.sleep(rng.choice([0.0, 0.0, 2.5]))
            text = f"{term.revision}".encode()
            await candidate.line.transact([guard], [Put(STATE, text)])
        except (Conflict, NotLeading, StoreUnavailable):
            continue


async def _check_writes(store: MemoryStore) -> None:
    """Each write of the state was made in the term that it bears."""
    last = await store.transact([], [Put("/end", b"")])
    term = 0
    async with aclosing(store.watch("/", 1)) as watch:
        async for change in watch:
            for entry in change.puts:  # type: ignore[union-attr]
                if entry.key == keys.LEADER:
                    assert not term, "a key that was there was taken"
                    term = entry.revision
                elif entry.key == STATE:
                    assert int(entry.value) == term
            if keys.LEADER in change.deletes:  # type: ignore[union-attr]
                term = 0
            if change.revision == last:  # type: ignore[union-attr]
                return


# Over real etcd, in real time.


@asynccontextmanager
async def real(endpoint: str, count: int) -> AsyncIterator[list[tuple[Proxy, EtcdStore, Election]]]:
    here = []
    for i in range(count):
        proxy = Proxy(endpoint)
        await proxy.start()
        store = EtcdStore(EtcdSettings((proxy.address,)), SystemClock(), Random(i))
        election = Election(store, f"cp-{i}", TTL_S, SystemClock(), Random(i))
        election.start()
        here.append((proxy, store, election))
    yield here
    for proxy, store, election in here:
        proxy.stopped = False
        proxy.thaw()
        await election.close()
        await store.close()
        await proxy.stop()


def leading(here: list[tuple[Proxy, EtcdStore, Election]]) -> int | None:
    indices = [i for i, (_, _, election) in enumerate(here) if election.leading]
    assert len(indices) <= 1
    return indices[0] if indices else None


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def endpoint(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    folder = tmp_path_factory.mktemp("etcd")
    # With etcd's own defaults for elections: it then grants no lease of less than 2 s.
    timing = ["--heartbeat-interval=100", "--election-timeout=1000"]
    cluster = EtcdCluster(folder, ports=free_ports(1), durable=False, extra_arguments=timing)
    await cluster.start()
    yield cluster.endpoints[0]
    await cluster.stop(grace_s=0)


async def test_etcd_takeover_and_fencing(endpoint: str) -> None:
    async with real(endpoint, 3) as here:
        await until(lambda: leading(here) is not None, 5.0)
        await until(lambda: all(election.leader for _, _, election in here), 3.0)
        first = leading(here)
        assert first is not None
        proxy, store, election = here[first]
        guard = election.guard()
        await store.transact([guard], [Put(STATE, b"first")])

        # Cut off, without a word to anybody: what SIGKILL, SIGSTOP and a partition have in common.
        proxy.freeze()
        took_s = await until(lambda: leading(here) not in (None, first), 6.0)
        assert took_s < 3.5  # 3 s, and some patience with a machine that is busy
        second = leading(here)
        assert second is not None
        _, other_store, other = here[second]
        with pytest.raises(NotLeading):
            election.guard()
        await other_store.transact([other.guard()], [Put(STATE, b"second")])

        proxy.thaw()
        with pytest.raises(Conflict) as caught:
            await refused_for_sure(store, guard)
        assert caught.value.keys == (keys.LEADER,)
        entry = await other_store.get(STATE)
        assert entry is not None
        assert entry.value == b"second"
        await until(lambda: election.leader == other.leader, 5.0)

        # A replica that is stopped in order hands over at once.
        await other.close()
        took_s = await until(lambda: leading(here) is not None, 3.0)
        assert took_s < 1.0


async def refused_for_sure(store: EtcdStore, guard: Guard) -> None:
    """Until there is an answer: the line was just mended."""
    for _ in range(20):
        try:
            await store.transact([guard], [Put(STATE, b"too late")])
        except StoreUnavailable:
            await asyncio.sleep(0.1)
        else:
            raise AssertionError("a deposed director could write")


async def test_etcd_frees_the_key_of_a_replica_that_died(endpoint: str) -> None:
    """Real leases, a real clock: the time from death to the next director."""
    async with real(endpoint, 2) as here:
        for _ in range(2):
            await until(lambda: leading(here) is not None, 5.0)
            index = leading(here)
            assert index is not None
            await asyncio.sleep(0.3)
            await kill(here[index][2])
            others = [e for i, (_, _, e) in enumerate(here) if i != index]
            took_s = await until(lambda: any(e.leading for e in others), 6.0)  # noqa: B023
            assert 1.0 < took_s < 3.5
            proxy, store, _ = here[index]
            here[index] = (
                proxy,
                store,
                Election(store, f"cp-{index}", TTL_S, SystemClock(), Random(9)),
            )
            here[index][2].start()
