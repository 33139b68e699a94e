"""A small file that is written whole or not at all, and checked when it is read.

The first line is a header with a SHA-256 of the rest, so that a damaged file is told from a
good one before anything in it is believed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from runtime import logs
from runtime.errors import TradewindError

log = logs.get("disk")

RETRY_S = 15.0

Content = bytes | Callable[[], bytes]


class DamagedFile(TradewindError):
    """The file is not the one that was written, or cannot be read."""


class CheckedFile:
    """Keeps the newest of what it is given, from a thread, so that the event loop never waits.

    What something newer overtakes before its turn is never written. `what` names the content in
    the header and in messages. A write that fails (a full disk) is logged, counted in `failures`
    and tried again every `retry_s`; meanwhile the file keeps what it had.
    """

    def __init__(self, path: Path, what: str, retry_s: float = RETRY_S) -> None:
        self.path = path
        self.failures = 0
        self._what = what
        self._retry_s = retry_s
        self._unsaved: Content | None = None
        self._writing = False
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def saved(self) -> bool:
        """The file holds what was given last."""
        return self._unsaved is None and not self._writing

    def load(self) -> bytes | None:
        """What was kept; None where nothing was, or where it is damaged (which is logged)."""
        try:
            return load(self.path, self._what)
        except DamagedFile as error:
            log.error("the file on disk is ignored", reason=str(error))
            return None

    def keep(self, data: Content) -> None:
        """Write `data`, or what it returns when called in a thread, soon. Needs a running loop."""
        self._unsaved = data
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._write(), name=f"keep-{self._what}")

    async def close(self) -> None:
        """Return when what was kept is written, or cannot be."""
        self._closing.set()
        if self._task is not None:
            await self._task
        self._closing.clear()

    async def _write(self) -> None:
        while self._unsaved is not None:
            data, self._unsaved = self._unsaved, None
            self._writing = True
            try:
                await asyncio.to_thread(self._save, data)
            except OSError as error:
                self.failures += 1
                log.error("not saved", path=str(self.path), reason=str(error))
                if self._unsaved is None:
                    self._unsaved = data
                if self._closing.is_set():
                    return
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), self._retry_s)
            finally:
                self._writing = False

    def _save(self, data: Content) -> None:
        save(self.path, self._what, data() if callable(data) else data)


_REPLACED = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC


def save(path: Path, what: str, body: bytes) -> None:
    """Replace `path` atomically; after a crash it holds the old content or this one.

    One writer at a time: what a crash leaves beside it has always the same name. Blocks on the
    disk (fsync): call it from a thread. Raises `OSError`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    try:
        with os.fdopen(os.open(temporary, _REPLACED, 0o600), "wb") as file:
            file.write(_header(what, body) + b"\n" + body)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(path.parent)


def load(path: Path, what: str) -> bytes | None:
    """The content of `path`; None where there is no file. Raises `DamagedFile`."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DamagedFile(f"cannot read {path}: {error.strerror}") from error
    header, _, body = data.partition(b"\n")
    if header != _header(what, body):
        raise DamagedFile(f"{path} is damaged: its checksum does not fit its content")
    return body


def _header(what: str, body: bytes) -> bytes:
    return f"tradewind-{what}-1 sha256={hashlib.sha256(body).hexdigest()}".encode()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
