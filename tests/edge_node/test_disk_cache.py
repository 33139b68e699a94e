"""The disk tier as a worker uses it: in the loop it never waits, and nothing that happens to the
disk reaches whoever is served."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog.testing

from edge_node.cache import disk as disk_module
from edge_node.cache import place
from edge_node.cache.disk import DiskCache
from edge_node.cache.key import AnswerKey
from edge_node.cache.shelf import MIN_BYTES
from edge_node.errors import ShelfFault
from edge_node.front.replies import Answer
from runtime.clock import ManualClock, SystemClock
from topology.wire.chat import Usage

ROOM = 4 * MIN_BYTES


def key(number: int, tenant: str = "acme") -> AnswerKey:
    return (tenant, "model", b"epoch678", number.to_bytes(16, "big"))


def answer(text: str) -> Answer:
    return Answer("id", 1, "model", text, "stop", Usage.of(1, 2))


@asynccontextmanager
async def opened(
    folder: Path, clock: ManualClock | SystemClock | None = None, max_bytes: int = ROOM
) -> AsyncIterator[DiskCache]:
    disk = DiskCache(folder, ROOM, clock or SystemClock())
    disk.start()
    disk.limit(max_bytes, 0.5)
    try:
        yield disk
    finally:
        await disk.close(10.0)


async def until(condition: object, timeout_s: float = 10.0) -> None:
    end = asyncio.get_running_loop().time() + timeout_s
    while not condition():  # type: ignore[operator]
        assert asyncio.get_running_loop().time() < end, "it did not come to pass in time"
        await asyncio.sleep(0.01)


async def written(disk: DiskCache, *numbers: int, ttl_s: float = 60.0) -> None:
    await until(lambda: disk.open)
    before = disk.written + disk.dropped
    for number in numbers:
        disk.keep(key(number), answer(f"text {number}"), ttl_s)
    await until(lambda: disk.written + disk.dropped == before + len(numbers))


def found(disk: DiskCache, number: int, late_s: float = 0.0) -> str | None:
    got = disk.find(key(number), late_s)
    return None if got is None else got[0].text


async def test_answers_survive_a_restart_in_private_files(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "cache"
    async with opened(folder) as disk:
        assert disk.find(key(1), 0.0) is None, "it never waits for the file to be opened"
        await written(disk, 1, 2)
        assert found(disk, 1) == "text 1"
    async with opened(folder) as disk:
        await until(lambda: disk.open)
        assert found(disk, 2) == "text 2"
        got = disk.find(key(2), 0.0)
        assert got is not None and 50 < got[1] <= 60
        assert disk.find(key(2, "other"), 0.0) is None
    for path in (folder, *folder.rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path


async def test_what_waits_is_written_at_the_end(tmp_path: Path) -> None:
    async with opened(tmp_path) as disk:
        await until(lambda: disk.open)
        disk.keep(key(7), answer("last"), 60.0)
    async with opened(tmp_path) as disk:
        await until(lambda: disk.open)
        assert found(disk, 7) == "last"


async def test_answers_end_by_the_calendar_and_clocks_may_jump(tmp_path: Path) -> None:
    clock = ManualClock()
    async with opened(tmp_path, clock) as disk:
        await written(disk, 1)
        clock.advance(59.0)
        assert found(disk, 1) == "text 1"
        clock.advance(2.0)
        assert found(disk, 1) is None
        assert found(disk, 1, late_s=30.0) == "text 1"
        clock.advance(-3600.0)  # set back: it comes from the future
        assert (found(disk, 1), found(disk, 1, late_s=1e9)) == (None, None)
        assert disk.disbelieved == 2
        clock.advance(1e9)
        assert found(disk, 1, late_s=3600.0) is None


async def test_it_can_be_turned_off_and_on_and_made_larger(tmp_path: Path) -> None:
    async with opened(tmp_path, max_bytes=MIN_BYTES) as disk:
        await written(disk, 1)
        disk.limit(ROOM, 0.5)
        await written(disk, 2)
        disk.limit(0, 0.5)
        assert found(disk, 1) is None
        disk.keep(key(3), answer("off"), 60.0)
        assert disk.pending == 0
        await until(lambda: not disk.open)
        disk.limit(ROOM, 0.5)
        await until(lambda: disk.open)
        assert [found(disk, n) for n in (1, 2, 3)] == ["text 1", "text 2", None]
        assert disk.faults == {}


async def test_what_cannot_be_written_soon_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ManualClock()
    async with opened(tmp_path, clock) as disk:
        await until(lambda: disk.open)
        for number in range(int(disk_module.WRITES_BURST) + 50):
            disk.keep(key(number), answer("x" * 100), 60.0)
        assert disk.dropped >= 50
        await until(lambda: disk.pending == 0)
        assert found(disk, 0) is not None


async def test_a_worker_beside_it_sees_what_it_writes(tmp_path: Path) -> None:
    program = """
import asyncio, sys
from pathlib import Path
from tests.edge_node.test_disk_cache import found, opened, until, written

async def main() -> None:
    async with opened(Path(sys.argv[1])) as disk:
        await written(disk, 5)
        await until(lambda: found(disk, 6) == "text 6")

asyncio.run(main())
"""
    async with opened(tmp_path) as disk:
        await written(disk, 1)
        other = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)])
        await until(lambda: found(disk, 5) == "text 5", 20.0)
        await written(disk, 6)
        await until(lambda: other.poll() is not None, 20.0)
        assert other.returncode == 0


@pytest.mark.parametrize("damage", ["short", "garbage", "meta", "values", "other"])
async def test_a_damaged_file_begins_anew(tmp_path: Path, damage: str) -> None:
    async with opened(tmp_path) as disk:
        await written(disk, *range(200))
    (file,) = tmp_path.glob("answers-*/data.mdb")
    size = file.stat().st_size
    with file.open("r+b") as data:
        match damage:
            case "short":
                data.truncate(size // 2)
            case "garbage":
                data.seek(8192)
                data.write(os.urandom(size - 8192))
            case "meta":
                data.write(os.urandom(8192))
            case "values":
                at = file.read_bytes().index(b"text 150")
                data.seek(at)
                data.write(b"lies")
            case "other":
                data.truncate(0)
                data.write(b"not a database")
    with structlog.testing.capture_logs() as logs:
        async with opened(tmp_path) as disk:
            await until(lambda: disk.open)
            assert found(disk, 1) is None
            await written(disk, 1)
            assert found(disk, 1) == "text 1"
    assert [line["event"] for line in logs] == ["the cache on disk begins anew"]


async def test_another_format_makes_way(tmp_path: Path) -> None:
    (tmp_path / "answers-0").mkdir()
    (tmp_path / "answers-0" / "data.mdb").write_bytes(b"old")
    async with opened(tmp_path) as disk:
        await written(disk, 1)
        assert not (tmp_path / "answers-0").exists()


async def test_a_file_far_too_large_makes_way(tmp_path: Path) -> None:
    async with opened(tmp_path) as disk:
        for start in range(0, 1800, 300):
            await written(disk, *range(start, start + 300))
    (file,) = tmp_path.glob("answers-*/data.mdb")
    if file.stat().st_size < 1.25 * MIN_BYTES:
        with file.open("r+b") as data:
            data.truncate(2 * MIN_BYTES)
    async with opened(tmp_path, max_bytes=MIN_BYTES) as disk:
        await written(disk, 1)
        assert file.stat().st_size <= MIN_BYTES


async def test_a_folder_that_cannot_be_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with structlog.testing.capture_logs() as logs:
        async with opened(tmp_path / "cache") as disk:
            await until(lambda: disk.faults)
            disk.keep(key(1), answer("x"), 60.0)
            assert (found(disk, 1), disk.dropped) == (None, 1)
    assert [line["log_level"] for line in logs] == ["warning"]


@pytest.mark.parametrize("kind", ["space", "full", "damaged", "other", "reopen"])
async def test_faults_of_writing_are_counted_and_reading_goes_on_where_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    async with opened(tmp_path) as disk:
        await written(disk, 1)
        shelf = disk._shelf
        assert shelf is not None

        def fails(batch: object) -> int:
            raise ShelfFault(kind, "of the test")  # type: ignore[arg-type]

        monkeypatch.setattr(shelf, "put", fails)
        await written(disk, 2)
        assert disk.dropped == 1
        expected = "damaged" if kind == "full" else kind
        await until(lambda: disk.faults == {expected: 1})
        if kind in ("space", "other"):
            assert (found(disk, 1), disk.open) == ("text 1", True)
        else:
            await until(lambda: disk._shelf is not shelf)
            assert found(disk, 1) is None


async def test_damage_found_while_reading_turns_it_off_until_it_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_module, "RETRY_S", 0.1)
    async with opened(tmp_path) as disk:
        await written(disk, 1)
        shelf = disk._shelf
        assert shelf is not None

        def fails(name: bytes) -> bytes | None:
            raise ShelfFault("damaged", "of the test")

        monkeypatch.setattr(shelf, "get", fails)
        assert found(disk, 1) is None
        await until(lambda: disk.open and disk._shelf is not shelf)
        assert found(disk, 1) is None, "what was damaged is gone"
        await written(disk, 1)
        assert found(disk, 1) == "text 1"


async def test_nobody_waits_for_a_folder_that_is_locked(tmp_path: Path) -> None:
    taken = place.Place(tmp_path, lambda: False)
    taken._lock = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    assert taken._locked(place.fcntl.LOCK_EX)
    loop = asyncio.get_running_loop()
    async with opened(tmp_path) as disk:
        started = loop.time()
        disk.keep(key(1), answer("x"), 60.0)
        assert found(disk, 1) is None
        assert loop.time() - started < 0.5
        await asyncio.sleep(0.2)
        assert not disk.open
        taken.close()
        await until(lambda: disk.open)
    assert disk.faults == {}
