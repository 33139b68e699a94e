"""The last good snapshot on disk: written whole or not at all, and checked when read."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

from runtime import atomic_file, logs
from runtime.errors import TradewindError
from runtime.validation import InvalidDocument
from topology.snapshot import Snapshot

log = logs.get("last-good")

_WHAT = "snapshot"


class DamagedSnapshot(TradewindError):
    """The file is no snapshot, or not the one that was written."""


class LastGood:
    """Keeps the newest snapshot in a file, from a thread, so that the event loop never waits.

    A snapshot that a newer one overtakes before its turn is never written. A failed write (a
    full disk) is logged and counted in `failures`; the file keeps what it had.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.failures = 0
        self._unsaved: Snapshot | None = None
        self._on_disk: Snapshot | None = None  # what the file holds, as far as this process knows
        self._task: asyncio.Task[None] | None = None

    def load(self) -> Snapshot | None:
        """What was kept; None where nothing was, or where it is damaged (which is logged)."""
        try:
            self._on_disk = load(self.path)
        except DamagedSnapshot as error:
            log.error("the last good snapshot is ignored", reason=str(error))
        return self._on_disk

    @property
    def vouched_s(self) -> float:
        """Until when somebody vouched for what the file holds: Unix time; 0: there is no file."""
        try:
            return self.path.stat().st_mtime
        except OSError:
            return 0.0

    async def vouch(self, snapshot: Snapshot, wall_s: float) -> None:
        """Note on the file that `snapshot` is still what holds, if the file is up with it."""
        if snapshot is self._on_disk:
            with contextlib.suppress(OSError):
                await asyncio.to_thread(os.utime, self.path, (wall_s, wall_s))

    def keep(self, snapshot: Snapshot) -> None:
        """Write `snapshot` soon. Needs a running event loop."""
        self._unsaved = snapshot
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._write(), name="last-good")

    async def close(self) -> None:
        """Return when what was kept is written."""
        if self._task is not None:
            await self._task

    async def _write(self) -> None:
        while self._unsaved is not None:
            snapshot, self._unsaved = self._unsaved, None
            try:
                await asyncio.to_thread(save, self.path, snapshot)
                self._on_disk = snapshot
            except OSError as error:
                self.failures += 1
                log.error("the snapshot was not saved", path=str(self.path), reason=str(error))


def save(path: Path, snapshot: Snapshot) -> None:
    """Replace `path` atomically; blocks on the disk (fsync). Raises `OSError`."""
    atomic_file.save(path, _WHAT, snapshot.encode())


def load(path: Path) -> Snapshot | None:
    """The snapshot in `path`; None where there is no file. Raises `DamagedSnapshot`."""
    try:
        body = atomic_file.load(path, _WHAT)
        return None if body is None else Snapshot.decode(body, str(path))
    except atomic_file.DamagedFile as error:
        raise DamagedSnapshot(str(error)) from error
    except InvalidDocument as error:
        raise DamagedSnapshot(f"{path} cannot be used: {error}") from error
