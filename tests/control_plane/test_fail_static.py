"""Nodes and replicas live on what is on their disks, and on disks that fail."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from pathlib import Path

import msgspec
import pytest

from control_plane import keys, rollout_record
from control_plane.changes.plan import Wanted
from control_plane.directives import state as states
from control_plane.directives.state import State
from control_plane.rollout_record import RolloutRecord
from control_plane.service import LAST_GOOD
from control_plane.store.base import Put
from control_plane.store.memory import MemoryStore
from runtime.atomic_file import CheckedFile
from tests.control_plane.mesh import Mesh, at, node, region, serving, until, world
from topology import resources as res
from topology.directive import Directive
from topology.snapshot import Snapshot
from topology.wire import last_good
from topology.wire.last_good import LastGood

WORLD = Wanted(puts=tuple(world()))


async def test_a_replica_restarted_without_its_store_serves_what_it_had(
    mesh: Mesh, tmp_path: Path
) -> None:
    """To a node that it knew, and to one that it never saw: a snapshot and a directive."""
    store = MemoryStore()
    async with serving(mesh, store, data_dir=tmp_path) as replica:
        done = await replica.changes.apply(WORLD, "o/a")
        state = State(term=9, number=9, shares={"tokyo": {"standard": {"frankfurt": 1.0}}})
        await store.transact([], [Put(keys.DIRECTOR_STATE, states.encode(state))])
        await until(lambda: replica.directives.state.number == 9)
        await until(lambda: replica.catalog.view.snapshot.revision == done.revision)
    cut = MemoryStore()
    cut.cut()
    told: list[Directive] = []
    async with (
        serving(mesh, cut, data_dir=tmp_path) as restarted,
        node(
            mesh, "edge/tokyo", [at(restarted)], tmp_path / "new", on_directive=told.append
        ) as edge,
    ):
        await until(lambda: len(edge.snapshot) == len(world()) and told)
        assert edge.snapshot.revision == done.revision
        assert edge.status.stale
        assert edge.status.confirmed_s == 0.0, "nobody vouches for it"
        assert restarted.catalog.view.stale_since_s is not None
        assert told[0].shares == {"standard": {"frankfurt": 1.0}}
        assert "tradewind_control_snapshot_stale 1.0" in restarted.metrics.expose().decode()
        cut.mend()  # as empty as a wiped cluster: what is known is not withdrawn
        await until(lambda: restarted.catalog.view.withheld)
        assert len(edge.snapshot) == len(world())


async def test_a_rollout_goes_no_further_while_the_store_is_away(
    mesh: Mesh, tmp_path: Path
) -> None:
    """Nor does a restart without the store finish it: the stage is on the disk too."""
    store = MemoryStore()
    async with serving(mesh, store, data_dir=tmp_path) as replica:
        await replica.changes.apply(WORLD, "o/a")
        before = replica.catalog.view.snapshot.get(res.Key("Region", "singapore"))
        assert before is not None
        after = region("singapore", "SG", capacity_tokens_per_s=7)
        record = RolloutRecord(
            number=2,
            author="o/a",
            reason="",
            started_s=0.0,
            status="canary",
            percent=0.0,
            canaries=("tokyo",),
            stage_since_s=0.0,
            before={"Region/singapore": msgspec.json.decode(res.encode(before))},
            base_revision=store.revision,
        )
        await store.transact(
            [],
            [
                Put(keys.of_resource(after.key), res.encode(after)),
                Put(keys.ROLLOUT, rollout_record.encode(record)),
            ],
        )
        await until(lambda: replica.catalog.view.rollout is not None)
        await until(lambda: not replica.catalog.disk_behind)
    cut = MemoryStore()
    cut.cut()
    async with (
        serving(mesh, cut, data_dir=tmp_path) as restarted,
        node(mesh, "edge/tokyo", [at(restarted)]) as canary,
        node(mesh, "edge/london", [at(restarted)]) as other,
    ):
        await until(lambda: len(canary.snapshot) == len(other.snapshot) == len(world()))
        assert canary.snapshot.regions["singapore"].capacity_tokens_per_s == 7
        assert other.snapshot.regions["singapore"].capacity_tokens_per_s == 100


@pytest.mark.parametrize("cut_at", [0, 60, 400, -1])
async def test_a_replica_whose_snapshot_was_cut_short(
    mesh: Mesh, tmp_path: Path, cut_at: int
) -> None:
    """It believes none of it, and sends nodes elsewhere until the store is back."""
    path = tmp_path / LAST_GOOD
    last_good.save(path, Snapshot.build(7, world()))
    path.write_bytes(path.read_bytes()[:cut_at])
    store = MemoryStore()
    held = tmp_path / "edge.snapshot"
    last_good.save(held, Snapshot.build(7, world()))
    store.cut()
    async with (
        serving(mesh, store, data_dir=tmp_path) as replica,
        node(mesh, "edge/tokyo", [at(replica)], held) as edge,
    ):
        await until(lambda: "no configuration yet" in edge.status.detail)
        assert edge.snapshot.revision == 7, "the node goes on with its own"
        store.mend()
        done = await replica.changes.apply(Wanted(puts=tuple(world())), "o/a")
        await until(lambda: edge.status.connected and not edge.status.stale)
        await until(lambda: edge.snapshot.revision == done.revision, 12.0)


async def test_a_full_disk_is_told_and_stops_nothing(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.control_plane.full_disk", str(tmp_path),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 40)
    assert process.returncode == 0, err.decode()
    found = json.loads(out.decode().splitlines()[-1])
    assert found["served"]
    assert found["on_disk_is_the_old_one"]
    assert found["left_behind"] == []
    [failures] = [line for line in found["metrics"] if line.startswith("tradewind_control_disk_f")]
    assert float(failures.split()[1]) >= 1
    assert "tradewind_control_disk_behind 1.0" in found["metrics"]
    assert "File too large" in out.decode() + err.decode()


async def test_what_a_full_disk_did_not_take_is_written_later(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("in its place")
    keeper = LastGood(tmp_path / "folder" / "snapshot", retry_s=0.05)
    keeper.keep(Snapshot.build(5, world()))
    await until(lambda: keeper.failures >= 2)
    assert not keeper.saved
    (tmp_path / "folder").unlink()
    await until(lambda: keeper.saved)
    await keeper.close()
    found = keeper.load()
    assert found is not None
    assert found.revision == 5


async def test_what_is_newer_and_empty_is_not_overtaken_by_what_a_full_disk_did_not_take(
    tmp_path: Path,
) -> None:
    (tmp_path / "folder").write_text("in its place")
    file = CheckedFile(tmp_path / "folder" / "x", "thing", retry_s=0.05)
    go_on = threading.Event()

    def old() -> bytes:
        assert go_on.wait(5.0)
        return b"old"

    file.keep(old)
    await asyncio.sleep(0.02)  # it is being written
    file.keep(b"")
    go_on.set()
    await until(lambda: file.failures >= 2)
    (tmp_path / "folder").unlink()
    await until(lambda: file.saved)
    await file.close()
    assert file.load() == b""


async def test_closing_does_not_wait_for_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("in its place")
    file = CheckedFile(tmp_path / "folder" / "x", "thing", retry_s=60.0)
    file.keep(b"1")
    await until(lambda: file.failures == 1)
    async with asyncio.timeout(2):
        await file.close()
    assert file.failures == 2
    assert not file.saved
