"""What is written to the registry, when, and how much of it at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from random import Random

import msgspec
import pytest

from control_plane.directives.observed import Member
from control_plane.membership.leases import LeaseRegistry
from control_plane.membership.upkeep import REWRITE_S, TICK_S, Upkeep
from control_plane.store.base import Put
from control_plane.store.memory import MemoryStore
from runtime.clock import ManualClock
from tests.control_plane.mesh import until
from tests.membership.worlds import core, edge

TTL_S = 15.0


class Slow(LeaseRegistry):
    """Counts what is under way, and takes its time."""

    def __init__(self, store: MemoryStore, clock: ManualClock) -> None:
        super().__init__(store, clock, Random(1), TTL_S)
        self.now = self.most = 0
        self.calls: list[tuple[str, str]] = []
        self.pause_s = 0.0

    async def register(self, member: Member, lease: int = 0) -> int:
        async with self._counting("register", member):
            return await super().register(member, lease)

    async def renew(self, member: Member, lease: int) -> None:
        async with self._counting("renew", member):
            await super().renew(member, lease)

    def _counting(self, what: str, member: Member) -> Counting:
        self.calls.append((what, member.node))
        return Counting(self)

    def count(self, what: str) -> int:
        return sum(call == what for call, _ in self.calls)


class Counting:
    def __init__(self, registry: Slow) -> None:
        self._registry = registry

    async def __aenter__(self) -> None:
        self._registry.now += 1
        self._registry.most = max(self._registry.most, self._registry.now)
        await asyncio.sleep(self._registry.pause_s)

    async def __aexit__(self, *_: object) -> None:
        self._registry.now -= 1


class World:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = MemoryStore(self.clock)
        self.registry = Slow(self.store, self.clock)
        self.upkeep = Upkeep(self.registry, self.clock, Random(2), 4)

    async def settle(self) -> None:
        """Until the ticker has looked, and nothing is under way."""
        await asyncio.sleep(TICK_S * 1.5)
        await until(lambda: not self.upkeep.pending and not self.registry.now)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    world.registry.start()
    world.upkeep.start()
    yield world
    await world.upkeep.close()
    await world.registry.close()


async def test_calls_are_bounded_and_one_per_node(world: World) -> None:
    world.registry.pause_s = 0.01
    for _ in range(3):
        for n in range(20):
            world.upkeep.heard(edge(f"e{n}"), 0)
    await until(lambda: len(world.registry.members) == 20)
    await world.settle()
    assert world.registry.most == 4 and world.registry.count("register") == 20


async def test_a_heartbeat_earns_one_renewal_and_silence_none(world: World) -> None:
    world.upkeep.heard(core(), 0)
    await until(lambda: "core/singapore" in world.registry.members)
    await world.settle()
    for _ in range(2):
        world.clock.advance(TTL_S / 3)
        before = world.registry.count("renew")
        world.upkeep.heard(core(), 0)
        await world.settle()
        world.clock.advance(TTL_S / 3)
        await world.settle()  # silent since
        assert world.registry.count("renew") == before + 1


async def test_a_process_that_slept_writes_nothing_of_what_it_knew(world: World) -> None:
    standing = world.upkeep.heard(core(incarnation="a"), 0)
    await until(lambda: standing.registered)
    world.clock.advance(20.0)  # SIGSTOP; meanwhile the core started anew, elsewhere
    world.store.expire()
    lease = await world.registry.register(core(incarnation="b"))
    calls = len(world.registry.calls)
    await world.settle()
    assert len(world.registry.calls) == calls
    await world.registry.renew(core(incarnation="b"), lease)


async def test_a_member_that_changes_its_mind_is_written_at_most_once_a_second(
    world: World,
) -> None:
    world.upkeep.heard(core(), 0)
    await world.settle()
    for n in range(40):
        world.clock.advance(REWRITE_S / 10)
        world.upkeep.heard(core(healthy=bool(n % 2)), 0)
        await asyncio.sleep(0.01)
    await world.settle()
    assert world.registry.count("register") <= 6
    world.clock.advance(REWRITE_S)
    await world.settle()
    assert world.registry.members["core/singapore"].healthy


async def test_one_at_a_time_asks_whether_the_registry_is_back(world: World) -> None:
    world.store.cut()
    standings = [world.upkeep.heard(edge(f"e{n}"), 0) for n in range(40)]
    await until(lambda: world.upkeep.failures > 0)
    await asyncio.sleep(TICK_S * 2)
    assert len(world.registry.calls) <= 8  # the clock stands still: nobody's turn has come
    assert all(not s.registered for s in standings)
    assert any("does not answer" in s.detail for s in standings)
    world.store.mend()
    world.clock.advance(3.0)
    await until(lambda: all(s.registered for s in standings))


async def test_who_leaves_while_being_registered_is_gone(world: World) -> None:
    world.registry.pause_s = 0.05
    standing = world.upkeep.heard(core(), 0)
    await asyncio.sleep(0.01)
    world.upkeep.leaves("core/singapore", standing)
    await asyncio.sleep(0.2)
    await world.settle()
    assert not world.registry.members and world.upkeep.forgotten == 1


async def test_closing_forgets_who_left_and_keeps_the_rest(world: World) -> None:
    here = world.upkeep.heard(core("dubai"), 0)
    world.upkeep.heard(core(), 0)
    await until(lambda: len(world.registry.members) == 2)
    await world.settle()
    world.upkeep.leaves("core/dubai", here)
    await world.upkeep.close()
    await until(lambda: set(world.registry.members) == {"core/singapore"})


async def test_the_time_since_which_a_node_is_there_outlives_its_replica(world: World) -> None:
    standing = world.upkeep.heard(core(since_s=100.0), 0)
    await until(lambda: standing.registered)
    other = Upkeep(world.registry, world.clock, Random(3), 4)
    moved = other.heard(core(since_s=900.0), standing.lease)
    assert moved.member.since_s == 100.0
    again = other.heard(core(incarnation="b", since_s=900.0), 0)
    assert again.member.since_s == 900.0
    await other.close()


async def test_an_entry_that_somebody_else_broke_is_written_over(world: World) -> None:
    standing = world.upkeep.heard(core(), 0)
    await until(lambda: standing.registered)
    for value in (b"\xff", msgspec.json.encode(core("dubai"))):
        await world.store.transact([], [Put("/tradewind/v1-members/core/singapore", value)])
        await until(lambda: not world.registry.members)
        world.clock.advance(TTL_S / 3)
        world.upkeep.heard(core(), 0)
        await until(lambda: "core/singapore" in world.registry.members)
