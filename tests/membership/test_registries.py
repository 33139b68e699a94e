"""One suite over every registry: leases in memory, leases in etcd, Consul."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random

import msgspec
import pytest

from control_plane.directives.observed import Member
from control_plane.membership.base import Registry, registered
from control_plane.membership.errors import MemberLost, RegistryUnavailable
from control_plane.membership.leases import LeaseRegistry
from control_plane.store.base import Delete, Guard, Operation, Put
from control_plane.store.memory import MemoryStore
from runtime.clock import SystemClock
from tests.control_plane.mesh import until
from tests.membership.worlds import World, core, edge


async def known(registry: Registry, *nodes: str, within_s: float = 5.0) -> None:
    await until(lambda: set(registry.members) == set(nodes), within_s)


async def test_a_member_is_known_to_every_replica(world: World) -> None:
    await world.first.register(core())
    await world.second.register(edge(worker=1))
    for registry in (world.first, world.second):
        await known(registry, "core/singapore", "edge/tokyo/1")
        assert registry.members["core/singapore"] == core()
        assert registry.members["edge/tokyo/1"] == edge(worker=1)
        assert registry.status.available
        assert registered(registry, ["singapore", "dubai"]) == {"singapore": True, "dubai": False}


async def test_what_changes_of_a_member_is_known(world: World) -> None:
    lease = await world.first.register(core())
    await known(world.second, "core/singapore")
    assert await world.first.register(core(healthy=False), lease) == lease
    await until(lambda: not world.second.members["core/singapore"].healthy)
    assert registered(world.second, ["singapore"]) == {"singapore": False}
    await world.first.register(core(), lease)
    await until(lambda: world.second.members["core/singapore"].healthy)


async def test_who_is_not_renewed_goes_and_who_is_stays(world: World) -> None:
    lease = await world.first.register(core())
    await world.first.register(core("frankfurt"))
    await known(world.second, "core/singapore", "core/frankfurt")
    loop = asyncio.get_running_loop()
    begun_s = loop.time()
    while "core/frankfurt" in world.second.members:
        assert loop.time() - begun_s < world.lapse_s, "still there"
        await asyncio.sleep(0.3)
        await world.first.renew(core(), lease)
    assert loop.time() - begun_s > 1.0  # not before its time
    assert "core/singapore" in world.second.members


async def test_who_leaves_is_gone_at_once(world: World) -> None:
    lease = await world.first.register(core())
    await known(world.second, "core/singapore")
    await world.first.forget(core(), lease)
    await known(world.second, within_s=1.5)
    await world.first.forget(core(), lease)  # once more is no error


async def test_only_the_incarnation_that_left_is_forgotten(world: World) -> None:
    old = await world.first.register(core(incarnation="a"))
    new = await world.second.register(core(incarnation="b"))
    await until(lambda: world.first.members.get("core/singapore") == core(incarnation="b"))
    await world.first.forget(core(incarnation="a"), old)
    await asyncio.sleep(0.3)
    await known(world.first, "core/singapore")
    await world.second.renew(core(incarnation="b"), new)


async def test_the_next_replica_goes_on_with_the_lease(world: World) -> None:
    lease = await world.first.register(core())
    await known(world.first, "core/singapore")
    await known(world.second, "core/singapore")
    assert await world.second.register(core(), lease) == lease
    loop = asyncio.get_running_loop()
    end_s = loop.time() + world.first.ttl_s + 0.5
    while loop.time() < end_s:  # longer than its time to live
        await world.second.renew(core(), lease)
        assert "core/singapore" in world.first.members
        await asyncio.sleep(0.4)


async def test_a_member_that_was_lost_is_said_to_be(world: World) -> None:
    lease = await world.first.register(core())
    await known(world.first, "core/singapore")
    await world.wipe()
    await known(world.first)
    with pytest.raises(MemberLost):
        await world.first.renew(core(), lease)
    again = await world.first.register(core(), lease)
    await known(world.second, "core/singapore")
    await world.first.renew(core(), again)


async def test_members_stay_while_the_registry_is_away(world: World) -> None:
    lease = await world.first.register(core())
    await known(world.second, "core/singapore")
    await world.cut()
    with pytest.raises(RegistryUnavailable):
        await world.first.renew(core(), lease)
    with pytest.raises(RegistryUnavailable):
        await world.first.register(core("dubai"))
    await until(lambda: not world.second.status.available)
    since_s = world.second.status.since_s
    await asyncio.sleep(0.3)
    assert world.second.status.since_s == since_s and world.second.status.detail
    assert registered(world.second, ["singapore"]) == {"singapore": None}
    assert world.second.members["core/singapore"] == core()
    await world.mend()
    await until(lambda: world.second.status.available, 15)


async def test_changes_are_announced_and_members_cannot_be_written(world: World) -> None:
    calls: list[int] = []
    world.second.on_change(lambda: calls.append(len(world.second.members)))
    await world.first.register(core())
    await known(world.second, "core/singapore")
    assert calls[-1] == 1
    with pytest.raises(TypeError):
        world.second.members["x"] = core()  # type: ignore[index]


async def test_many_members_at_once(world: World) -> None:
    members = [edge(f"edge-{n}") for n in range(60)]
    leases = await asyncio.gather(*(world.first.register(m) for m in members))
    await known(world.second, *(m.node for m in members))
    await asyncio.gather(*(world.first.renew(m, n) for m, n in zip(members, leases, strict=True)))
    assert msgspec.json.encode(dict(world.second.members))


class Late(MemoryStore):
    """Its answers come when everybody else has acted on them."""

    async def transact(self, guards: Sequence[Guard], operations: Sequence[Operation]) -> int:
        revision = await super().transact(guards, operations)
        if isinstance(operations[0], Put):
            await super().transact([], [Delete(operations[0].key)])
            await asyncio.sleep(0.05)
        return revision


async def test_a_member_that_went_before_its_writer_heard_of_it_stays_gone() -> None:
    registry = LeaseRegistry(Late(), SystemClock(), Random(1))
    registry.start()
    await until(lambda: registry.status.available)
    await registry.register(Member("core/dubai", "core", "dubai", "i-1"))
    assert not registry.members
    await registry.close()
