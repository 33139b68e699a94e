"""Changes on a real etcd: the largest that one transaction takes, its history and its audit."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest

from control_plane import keys
from control_plane.changes.apply import MAX_RESOURCES
from control_plane.changes.errors import RULES
from control_plane.changes.plan import Wanted
from control_plane.store.etcd import EtcdStore
from control_plane.store.settings import EtcdSettings
from lab.etcd_cluster import EtcdCluster
from runtime.clock import SystemClock
from tests.control_plane.bench import Bench
from tests.control_plane.mesh import region, resource
from tests.store.worlds import free_ports

FORCED = Wanted(force=RULES)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[EtcdStore]:
    cluster = EtcdCluster(tmp_path / "etcd", ports=free_ports(1), durable=False)
    await cluster.start()
    made = EtcdStore(EtcdSettings(tuple(cluster.endpoints)), SystemClock(), Random(1))
    yield made
    await made.close()
    await cluster.stop(grace_s=0)


async def test_the_largest_change_staged_and_with_history_dropped(store: EtcdStore) -> None:
    """120 resources, a rollout, and two old changes that go: 128 operations, etcd's limit."""
    async with Bench(store) as before:
        first = await before.apply(region("first"), resource("Policy", "default", rollout={}))
        for number in range(8):
            await before.apply(region("first", capacity_tokens_per_s=number + 1), immediate=True)
    async with Bench(store, keep=3) as bench:
        many = [region(f"r{n}") for n in range(MAX_RESOURCES)]
        done = await bench.changes.apply(Wanted(puts=tuple(many)), "o/a")
        assert done.plan.staged
        written = [
            e for e in (await store.list("/tradewind/")).entries if e.revision == done.revision
        ]
        assert len(written) == MAX_RESOURCES + 4, "head, history, audit, rollout"
        kept = (await store.list(keys.HISTORY)).entries
        assert [keys.number_of(entry.key) for entry in kept] == list(range(3, 11))
        found = await bench.changes.archive.verify()
        assert (found.intact, found.first, found.last) == (True, 3, 10)
        page, _ = await bench.changes.archive.page(3)
        assert [kept.number for kept in page] == [10, 9, 8]
        assert first < page[-1].revision
        back = await bench.changes.roll_back(page[1].revision, FORCED, "o/a")
        assert len(back.plan.effective) == MAX_RESOURCES
        assert {key.name for key in await bench.held()} == {"first", "default"}
