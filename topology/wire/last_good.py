"""The last good snapshot on disk: written whole or not at all, and checked when read.

The first line is a header with a SHA-256 of the rest, so that a damaged file is told from a
good one before anything in it is believed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

from runtime import logs
from runtime.errors import TradewindError
from runtime.validation import InvalidDocument
from topology.snapshot import Snapshot

log = logs.get("last-good")

_MAGIC = b"tradewind-snapshot-1 sha256="


class DamagedSnapshot(TradewindError):
    """The file is no snapshot, or not the one that was written."""


class LastGood:
    """Keeps the newest snapshot in a file, from a thread, so that the event loop never waits.

    A snapshot that a newer one overtakes before its turn is never written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._unsaved: Snapshot | None = None
        self._task: asyncio.Task[None] | None = None

    def load(self) -> Snapshot | None:
        """What was kept; None where nothing was, or where it is damaged (which is logged)."""
        try:
            return load(self.path)
        except DamagedSnapshot as error:
            log.error("the last good snapshot is ignored", reason=str(error))
            return None

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
            except OSError as error:
                log.error("the snapshot was not saved", path=str(self.path), reason=str(error))


def save(path: Path, snapshot: Snapshot) -> None:
    """Replace `path` atomically; after a crash it holds the old snapshot or this one.

    Blocks on the disk (fsync): call it from a thread. Raises `OSError`.
    """
    body = snapshot.encode()
    header = _MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(header + body)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise
    _sync_folder(path.parent)


def load(path: Path) -> Snapshot | None:
    """The snapshot in `path`; None where there is no file. Raises `DamagedSnapshot`."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DamagedSnapshot(f"cannot read {path}: {error.strerror}") from error
    header, _, body = data.partition(b"\n")
    expected = _MAGIC + hashlib.sha256(body).hexdigest().encode()
    if header != expected:
        raise DamagedSnapshot(f"{path} is damaged: its checksum does not fit its content")
    try:
        return Snapshot.decode(body, str(path))
    except InvalidDocument as error:
        raise DamagedSnapshot(f"{path} cannot be used: {error}") from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
