"""The director at work: two replicas on one store, a paced drain, and a change of director."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from random import Random

import pytest
from xds.data.orca.v3.orca_load_report_pb2 import OrcaLoadReport

from control_plane import keys
from control_plane.changes.overrides import Order, set_override
from control_plane.changes.plan import Wanted
from control_plane.directives import state as states
from control_plane.directives.state import Outlook, Quota, State
from control_plane.director import loop
from control_plane.director.decide import Decided
from control_plane.director.loop import differs_much
from control_plane.service import Replica
from control_plane.store.base import Delete, Guard, Put
from control_plane.store.errors import Conflict
from control_plane.store.memory import MemoryStore
from runtime.clock import SystemClock
from tests.control_plane.mesh import Mesh, at, resource, serving, until, world
from topology.directive import NONE
from topology.wire.membership_client import MembershipClient, Report


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Mesh:
    return Mesh(tmp_path_factory.mktemp("mesh"))


class Shared(MemoryStore):
    """One store under two replicas: it closes when the test says so, not when one of them ends."""

    async def close(self) -> None:
        return


async def stored(store: MemoryStore) -> State:
    entry = await store.get(keys.DIRECTOR_STATE)
    return State() if entry is None else states.decode(entry.value, entry.key)


def directing(*replicas: Replica) -> Replica | None:
    return next((r for r in replicas if r.direction.election.leading is not None), None)


@asynccontextmanager
async def core(mesh: Mesh, region: str, *replicas: Replica) -> AsyncIterator[None]:
    """A core that says that it is well and idle."""
    idle = OrcaLoadReport(application_utilization=0.1)
    client = MembershipClient(
        f"core/{region}",
        [at(replica) for replica in replicas],
        lambda: mesh.identity(f"core/{region}"),
        lambda: Report(healthy=True, orca=idle.SerializeToString()),
        SystemClock(),
        Random(3),
    )
    client.start()
    try:
        yield
    finally:
        await client.close()


async def drain(replica: Replica, region: str, over_s: float) -> None:
    order = Order(regions=(region,), action="drain", reason="test", over_s=over_s)
    held = await replica.changes.resources()
    wanted = set_override(order, held, NONE, SystemClock().wall())
    await replica.changes.apply(wanted, "operator/test")


async def test_another_director_goes_on_with_a_paced_drain_where_the_first_stopped(
    mesh: Mesh,
) -> None:
    store = Shared()
    async with serving(mesh, store, "cp-1") as first:
        await until(lambda: directing(first))
        async with (
            serving(mesh, store, "cp-2") as second,
            core(mesh, "frankfurt", second),
        ):
            await first.changes.apply(Wanted(puts=tuple(world())), "operator/test")
            await drain(first, "singapore", over_s=12.0)

            async def percent() -> float:
                held = (await stored(store)).drains.get("singapore")
                return held.percent if held else 0.0

            seen = [await percent()]
            while seen[-1] < 15.0:
                await asyncio.sleep(0.2)
                seen.append(await percent())
                assert len(seen) < 100, "the drain does not begin"
            term = (await stored(store)).term
            await first.direction.close()
            await until(lambda: directing(second))
            while seen[-1] < 100.0:
                await asyncio.sleep(0.2)
                seen.append(await percent())
                assert len(seen) < 200, "the drain does not go on"
            assert seen == sorted(seen)
            assert max(b - a for a, b in itertools.pairwise(seen)) < 25.0
            after = await stored(store)
            assert after.term > term
            assert after.director == "cp-2"


async def test_a_deposed_director_cannot_write(mesh: Mesh) -> None:
    store = Shared()
    async with serving(mesh, store, "cp-1") as first:
        await until(lambda: directing(first))
        stale: Guard = first.direction.election.guard()
        await first.direction.close()
        async with serving(mesh, store, "cp-2") as second:
            await until(lambda: directing(second))
            with pytest.raises(Conflict):
                await store.transact([stale], [Put(keys.DIRECTOR_STATE, b"harm")])
            assert second.direction.election.guard().revision > stale.revision


@pytest.mark.parametrize("harm", [None, b"no state"], ids=["gone", "garbage"])
async def test_a_state_that_is_lost_is_written_again_and_nothing_given_is_forgotten(
    mesh: Mesh, harm: bytes | None
) -> None:
    store = Shared()
    given = {"acme": Quota(given={"edge/tokyo": 8.0})}
    before = State(term=3, director="cp-0", number=1_900_000_000, quotas=given)
    await store.transact([], [Put(keys.DIRECTOR_STATE, states.encode(before))])
    async with serving(mesh, store, "cp-1") as replica:
        await until(lambda: replica.directives.state.number > before.number)
        limited = resource("Tenant", "acme", api_keys=[], limit={"requests_per_s": 10.0})
        others = (found for found in world() if found.key != limited.key)
        await replica.changes.apply(Wanted(puts=(*others, limited)), "operator/test")
        await until(lambda: "acme" in replica.directives.state.quotas)
        known = replica.directives.state
        lost = Delete(keys.DIRECTOR_STATE) if harm is None else Put(keys.DIRECTOR_STATE, harm)
        await store.transact([], [lost])
        await drain(replica, "singapore", over_s=60.0)  # something to write
        await until(lambda: replica.directives.state.number > known.number)
        now = await stored(store)
        assert now.number > known.number
        assert now.quotas["acme"].reserved == known.quotas["acme"].reserved
        assert now.verdicts == known.verdicts


async def test_a_director_that_fails_says_so_and_goes_on(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(mesh, Shared(), "cp-1") as replica:
        director = replica.direction.director

        def figure(name: str) -> float:
            return {s.name: s.value for s in director.samples()}[f"tradewind_director_{name}"]

        await until(lambda: figure("ticks_total") > 0)
        assert (figure("fails"), figure("failures_total")) == (0, 0)

        def fail(*_: object) -> Decided:
            raise RuntimeError("a mistake of ours")

        with monkeypatch.context() as patched:
            patched.setattr(loop, "decide", fail)
            await until(lambda: figure("fails"))
        ticks = figure("ticks_total")
        await until(lambda: figure("ticks_total") > ticks)
        assert figure("failures_total") > 0 == figure("fails")


@pytest.fixture
def held() -> Iterator[Outlook]:
    yield Outlook(at_s=100.0, flows={"vip:a": {"a": 50.0}}, utilisation={"a": 0.5})


def test_an_outlook_is_written_when_it_moved_or_grew_old(held: Outlook) -> None:
    assert not differs_much(held, Outlook(102.0, {"vip:a": {"a": 53.0}}, {"a": 0.52}))
    assert differs_much(held, Outlook(102.0, {"vip:a": {"a": 80.0}}, {"a": 0.5}))
    assert differs_much(held, Outlook(102.0, {"vip:a": {"a": 50.0}}, {"a": 0.9}))
    assert differs_much(held, Outlook(106.0, held.flows, held.utilisation))
    assert not differs_much(held, Outlook(100.5, {}, {}))
    assert differs_much(held, Outlook(40.0, held.flows, held.utilisation))  # the clock went back
