"""The last good snapshot on disk: whole, or not believed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.control_plane.mesh import world
from topology.snapshot import Snapshot
from topology.wire import last_good
from topology.wire.last_good import DamagedSnapshot, LastGood

SNAPSHOT = Snapshot.build(5, world())


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "snapshot"
    assert last_good.load(path) is None
    last_good.save(path, SNAPSHOT)
    assert last_good.load(path).encode() == SNAPSHOT.encode()
    assert [p.name for p in path.parent.iterdir()] == ["snapshot"]
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("cut", [0, 1, 20, 90, 91, 500, -1])
def test_a_part_of_it_is_damaged(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "snapshot"
    last_good.save(path, SNAPSHOT)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DamagedSnapshot):
        last_good.load(path)


def test_any_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    last_good.save(path, SNAPSHOT)
    data = path.read_bytes()
    for index in range(0, len(data), 97):
        path.write_bytes(data[:index] + bytes([data[index] ^ 1]) + data[index + 1 :])
        with pytest.raises(DamagedSnapshot):
            last_good.load(path)


def test_a_folder_in_its_place(tmp_path: Path) -> None:
    with pytest.raises(DamagedSnapshot):
        last_good.load(tmp_path)


async def test_only_the_newest_is_written(tmp_path: Path) -> None:
    keeper = LastGood(tmp_path / "snapshot")
    for revision in range(1, 50):
        keeper.keep(Snapshot.build(revision, world()))
        if revision % 10 == 0:
            await asyncio.sleep(0)
    await keeper.close()
    assert keeper.load().revision == 49


async def test_a_disk_that_takes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    keeper = LastGood(tmp_path / "file" / "snapshot")
    keeper.keep(SNAPSHOT)
    await keeper.close()


def test_what_a_crash_left_beside_it_is_written_over(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    (tmp_path / ".snapshot.new").write_bytes(b"half a snapshot, from a process that was killed")
    last_good.save(path, Snapshot.empty())
    assert [file.name for file in tmp_path.iterdir()] == ["snapshot"]
    assert last_good.load(path) is not None
