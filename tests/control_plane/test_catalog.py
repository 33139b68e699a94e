"""The catalog: a snapshot that is always whole, whatever the store holds or does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest

from control_plane import keys
from control_plane.catalog import Catalog
from control_plane.store.base import Delete, Put
from control_plane.store.memory import MemoryStore
from runtime.clock import ManualClock
from tests.control_plane.mesh import region, resource, until, world
from topology import resources as res
from topology.resources import Resource


@asynccontextmanager
async def following(store: MemoryStore, kept: Path | None = None) -> AsyncIterator[Catalog]:
    catalog = Catalog(store, kept, ManualClock(), Random(1))
    catalog.start()
    try:
        yield catalog
    finally:
        await catalog.close()


async def put(store: MemoryStore, *resources: Resource) -> int:
    return await store.transact(
        [], [Put(keys.of_resource(r.key), res.encode(r)) for r in resources]
    )


async def settled(catalog: Catalog, store: MemoryStore) -> None:
    assert await catalog.reached(store.revision, 2.0)


@pytest.fixture
async def store() -> MemoryStore:
    made = MemoryStore(ManualClock())
    await put(made, *world())
    return made


async def test_a_dangling_reference_keeps_the_snapshot_whole(store: MemoryStore) -> None:
    async with following(store) as catalog:
        await settled(catalog, store)
        good = catalog.view.snapshot
        await store.transact([], [Delete("/tradewind/v1/Region/singapore")])
        await settled(catalog, store)
        assert catalog.view.snapshot is good
        assert "Region 'singapore'" in str(catalog.view.problems[0])
        await put(store, region("singapore", capacity_tokens_per_s=3))
        await settled(catalog, store)
        assert catalog.view.problems == ()
        assert catalog.view.snapshot.regions["singapore"].capacity_tokens_per_s == 3


@pytest.mark.parametrize(
    "value",
    [b"", b"{", b"\xff\xfe", b"null", b"[]", b'{"kind":"Region"}', res.encode(region("other"))],
)
async def test_a_bad_value_keeps_the_last_good_one(store: MemoryStore, value: bytes) -> None:
    async with following(store) as catalog:
        await settled(catalog, store)
        await store.transact([], [Put("/tradewind/v1/Region/singapore", value)])
        await put(store, region("dubai", "AE"))
        await settled(catalog, store)
        assert set(catalog.view.snapshot.regions) == {"singapore", "frankfurt", "dubai"}
        assert "/tradewind/v1/Region/singapore" in str(catalog.view.problems[0])


async def test_a_bad_value_at_a_cold_start_is_taken_from_disk(
    store: MemoryStore, tmp_path: Path
) -> None:
    kept = tmp_path / "snapshot"
    async with following(store, kept) as catalog:
        await settled(catalog, store)
    await store.transact([], [Put("/tradewind/v1/Region/singapore", b"{")])
    async with following(store, kept) as catalog:
        await settled(catalog, store)
        assert "singapore" in catalog.view.snapshot.regions
        assert catalog.view.problems


async def test_an_empty_store_is_not_believed_by_who_knows_better(
    store: MemoryStore, tmp_path: Path
) -> None:
    kept = tmp_path / "snapshot"
    async with following(store, kept) as catalog:
        await settled(catalog, store)
    async with following(MemoryStore(), kept) as catalog:
        await until(lambda: catalog.view.withheld)
        assert len(catalog.view.snapshot) == len(world())
        assert "wiped" in str(catalog.view.problems[0])
    async with following(MemoryStore()) as catalog:
        await until(lambda: catalog.view.ready)
        assert len(catalog.view.snapshot) == 0
        assert not catalog.view.problems


async def test_history_that_was_compacted_away(store: MemoryStore) -> None:
    async with following(store) as catalog:
        await settled(catalog, store)
        store.cut()
        store.mend()
        await put(store, region("dubai", "AE"))
        store.compact(store.revision)
        await settled(catalog, store)
        assert "dubai" in catalog.view.snapshot.regions


async def test_staleness_comes_and_goes(store: MemoryStore) -> None:
    async with following(store) as catalog:
        await settled(catalog, store)
        changes: list[float | None] = []
        catalog.on_change(lambda: changes.append(catalog.view.stale_since_s))
        assert catalog.view.stale_since_s is None
        store.cut()
        assert catalog.view_now.stale_since_s == store.status.since_s
        await until(lambda: catalog.view.stale_since_s is not None)
        store.mend()
        await until(lambda: catalog.view.stale_since_s is None)
        assert changes == [store.status.since_s, None]


async def test_a_listener_that_fails_does_not_end_the_watch_over_staleness(
    store: MemoryStore,
) -> None:
    async with following(store) as catalog:
        await settled(catalog, store)

        def fail() -> None:
            raise RuntimeError("a listener's mistake")

        catalog.on_change(fail)
        store.cut()
        await until(lambda: catalog.view.stale_since_s is not None)
        store.mend()
        await until(lambda: catalog.view.stale_since_s is None)


async def test_a_store_away_from_the_start(tmp_path: Path) -> None:
    store = MemoryStore(ManualClock())
    store.cut()
    async with following(store) as catalog:
        assert not catalog.view.ready
        assert catalog.view.stale_since_s is not None
        store.mend()
        await put(store, *world())
        await until(lambda: len(catalog.view.snapshot) == len(world()))
        assert catalog.view.stale_since_s is None


async def test_a_resource_carries_the_revision_that_changed_it(store: MemoryStore) -> None:
    async with following(store) as catalog:
        await settled(catalog, store)
        first = catalog.view.snapshot
        revision = await put(store, resource("Tenant", "acme", tier="batch"))
        await settled(catalog, store)
        now = catalog.view.snapshot
        assert now.revision == revision
        of: Callable[[str, str], int] = lambda kind, name: now.get(res.Key(kind, name)).revision  # noqa: E731
        assert of("Tenant", "acme") == revision
        assert of("Tenant", "globex") == first.revision


async def test_transactions_elsewhere_are_not_waited_for(store: MemoryStore) -> None:
    async with following(store) as catalog:
        await settled(catalog, store)
        before = catalog.view.snapshot
        elsewhere = await store.transact([], [Put("/somewhere/else", b"1")])
        began = asyncio.get_running_loop().time()
        assert await catalog.reached(elsewhere, 5.0)
        assert asyncio.get_running_loop().time() - began < 2.0
        assert catalog.view.snapshot is before
        after = await put(store, region("dubai", "AE"))
        assert await catalog.reached(after, 5.0)
        assert "dubai" in catalog.view.snapshot.regions
        store.cut()
        assert not await catalog.reached(after + 1, 0.6)


async def test_a_listing_that_overtakes_the_watch(store: MemoryStore) -> None:
    """What the watch brings afterwards is older, and passed over."""
    async with following(store) as catalog:
        await settled(catalog, store)
        seen: list[int] = []
        catalog.on_change(lambda: seen.append(catalog.view.seen_revision))
        for capacity in range(1, 20):
            revision = await put(store, region("singapore", capacity_tokens_per_s=capacity))
            if capacity % 3 == 0:
                await catalog._catch_up(revision)
        assert await catalog.reached(revision, 5.0)
        await asyncio.sleep(0.05)
        assert seen == sorted(seen)
        assert catalog.view.snapshot.regions["singapore"].capacity_tokens_per_s == 19
