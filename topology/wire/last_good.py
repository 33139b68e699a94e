"""The last good snapshot on disk: written whole or not at all, and checked when read."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

from runtime import atomic_file, logs
from runtime.atomic_file import CheckedFile
from runtime.errors import TradewindError
from runtime.validation import InvalidDocument
from topology.snapshot import Snapshot

log = logs.get("last-good")

_WHAT = "snapshot"


class DamagedSnapshot(TradewindError):
    """The file is no snapshot, or not the one that was written."""


class LastGood:
    """Keeps the newest snapshot in a file: see `runtime.atomic_file.CheckedFile`."""

    def __init__(self, path: Path, retry_s: float = atomic_file.RETRY_S) -> None:
        self.path = path
        self._file = CheckedFile(path, _WHAT, retry_s)
        self._last: Snapshot | None = None  # the newest that is, or is to be, in the file

    @property
    def failures(self) -> int:
        """How many writes failed."""
        return self._file.failures

    @property
    def saved(self) -> bool:
        """The file holds the newest snapshot."""
        return self._file.saved

    def load(self) -> Snapshot | None:
        """What was kept; None where nothing was, or where it is damaged (which is logged)."""
        try:
            self._last = load(self.path)
        except DamagedSnapshot as error:
            log.error("the last good snapshot is ignored", reason=str(error))
        return self._last

    @property
    def vouched_s(self) -> float:
        """Until when somebody vouched for what the file holds: Unix time; 0: there is no file."""
        try:
            return self.path.stat().st_mtime
        except OSError:
            return 0.0

    async def vouch(self, snapshot: Snapshot, wall_s: float) -> None:
        """Note on the file that `snapshot` is still what holds, if the file is up with it."""
        if snapshot is self._last and self._file.saved:
            with contextlib.suppress(OSError):
                await asyncio.to_thread(os.utime, self.path, (wall_s, wall_s))

    def keep(self, snapshot: Snapshot) -> None:
        """Write `snapshot` soon. Needs a running event loop."""
        self._last = snapshot
        self._file.keep(snapshot.encode)

    async def close(self) -> None:
        """Return when what was kept is written, or cannot be."""
        await self._file.close()


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
