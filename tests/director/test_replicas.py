"""Which replicas are alive, as each of them knows it; in virtual time over the memory store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import pytest

from control_plane import keys
from control_plane.replicas import LEASE_TTL_S, Replicas
from control_plane.store.base import Delete, Put
from control_plane.store.memory import MemoryStore
from tests.director.distant import DistantStore
from tests.director.test_election import until
from tests.director.virtual import LoopClock, run


class Here:
    """A store, and replicas on lines of their own."""

    def __init__(self) -> None:
        self.store = MemoryStore(LoopClock())
        self.lines: dict[str, DistantStore] = {}
        self.replicas: list[Replicas] = []

    def add(self, name: str, address: str = "127.0.0.1:1") -> Replicas:
        line = self.lines[name] = DistantStore(self.store, Random(name))
        replicas = Replicas(line, name, address, LoopClock(), Random(name))
        replicas.start()
        self.replicas.append(replicas)
        return replicas


@asynccontextmanager
async def here() -> AsyncIterator[Here]:
    there = Here()
    yield there
    for line in there.lines.values():
        line.cut = False
        line.thaw()
    await asyncio.gather(*(replicas.close() for replicas in there.replicas))
    assert (await there.store.list(keys.REPLICAS)).entries == ()
    await there.store.close()


async def kill(replicas: Replicas) -> None:
    for task in replicas._tasks:
        task.cancel()
    await asyncio.gather(*replicas._tasks, return_exceptions=True)


def test_all_know_who_is_there() -> None:
    async def test() -> None:
        async with here() as there:
            one = there.add("cp-1", "10.0.0.1:7400")
            heard: list[dict[str, str]] = []
            one.on_change(lambda: heard.append(one.alive))
            two = there.add("cp-2", "10.0.0.2:7400")
            both = {"cp-1": "10.0.0.1:7400", "cp-2": "10.0.0.2:7400"}
            await until(lambda: one.alive == two.alive == both, 1.0)
            before = there.store.revision
            await asyncio.sleep(300)
            assert one.alive == two.alive == both
            assert there.store.revision == before, "keeping a lease alive changes nothing"
            assert heard[-1] == both
            assert len(heard) == 2
            await two.close()  # in order: at once
            await until(lambda: one.alive == {"cp-1": "10.0.0.1:7400"}, 0.2)

    run(test())


def test_the_dead_are_forgotten_and_the_lost_register_again() -> None:
    async def test() -> None:
        async with here() as there:
            one, two = there.add("cp-1"), there.add("cp-2")
            await until(lambda: len(one.alive) == len(two.alive) == 2, 1.0)
            await kill(two)
            assert await until(lambda: "cp-2" not in one.alive, LEASE_TTL_S + 0.5) > 5
            again = there.add("cp-2", "127.0.0.1:2")
            await until(lambda: one.alive.get("cp-2") == "127.0.0.1:2", 1.0)
            # Restarted before its old lease has ended: that must not take the new key along.
            await kill(again)
            third = there.add("cp-2", "127.0.0.1:3")
            await until(lambda: one.alive.get("cp-2") == "127.0.0.1:3", 1.0)
            await asyncio.sleep(2 * LEASE_TTL_S)
            assert one.alive == third.alive
            assert one.alive["cp-2"] == "127.0.0.1:3"
            # Frozen for long: gone, and back when it wakes.
            there.lines["cp-1"].freeze()
            await until(lambda: "cp-1" not in third.alive, LEASE_TTL_S + 0.5)
            await asyncio.sleep(60)
            there.lines["cp-1"].thaw()
            await until(lambda: "cp-1" in third.alive, 3.0)
            # Removed by somebody.
            await there.store.transact([], [Delete(keys.of_replica("cp-1"))])
            await until(lambda: "cp-1" not in third.alive, 0.1)
            await until(lambda: "cp-1" in third.alive, 1.0)

    run(test())


def test_the_store_may_go_away() -> None:
    async def test() -> None:
        async with here() as there:
            one, two = there.add("cp-1"), there.add("cp-2")
            await until(lambda: len(one.alive) == len(two.alive) == 2, 1.0)
            there.store.cut()
            await asyncio.sleep(600)
            assert len(one.alive) == 2
            there.store.mend()
            await asyncio.sleep(60)
            assert len(one.alive) == len(two.alive) == 2
            there.lines["cp-2"].cut = True
            await until(lambda: "cp-2" not in one.alive, LEASE_TTL_S + 0.5)
            assert len(two.alive) == 2  # as it was when it was last heard
            there.lines["cp-2"].cut = False
            await until(lambda: len(one.alive) == len(two.alive) == 2, 4.0)

    run(test())


@pytest.mark.parametrize("value", [b"", b"{}", b"not json", b'{"address": 5}', b"[]"])
def test_what_others_write_there_is_nobody(value: bytes) -> None:
    async def test() -> None:
        async with here() as there:
            one = there.add("cp-1")
            await until(lambda: one.alive, 1.0)
            await there.store.transact([], [Put(keys.of_replica("cp-9"), value)])
            two = there.add("cp-2")
            await until(lambda: len(one.alive) == 2 and len(two.alive) == 2, 1.0)
            assert sorted(one.alive) == ["cp-1", "cp-2"]
            await there.store.transact([], [Delete(keys.of_replica("cp-9"))])

    run(test())


def test_two_with_one_name_do_not_fight() -> None:
    async def test() -> None:
        async with here() as there:
            there.add("cp-1", "127.0.0.1:1")
            await asyncio.sleep(1)
            second = there.add("cp-1", "127.0.0.1:2")
            await until(lambda: second.alive.get("cp-1") == "127.0.0.1:2", 1.0)
            before = there.store.revision
            await asyncio.sleep(120)
            assert there.store.revision == before
            await kill(there.replicas.pop(0))

    run(test())


def test_answers_that_get_lost() -> None:
    async def test() -> None:
        for seed in range(10):
            async with here() as there:
                one = there.add(f"cp-{seed}")
                there.lines[f"cp-{seed}"].lossy = 0.5
                await asyncio.sleep(60)
                there.lines[f"cp-{seed}"].lossy = 0.0
                await until(lambda: one.alive, 5.0)  # noqa: B023

    run(test())
