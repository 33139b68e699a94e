"""The folder of a cache on disk: made, locked, checked, and emptied when it is of no use.

Whoever uses the file holds the lock beside it together with others; whoever checks or deletes the
file holds it alone. Blocks: for a thread. LMDB's file may kill whoever reads a damaged one, so
that is tried out first by a process that nobody misses (`edge_node.cache.check`).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from edge_node.cache import check, record
from edge_node.cache.shelf import Shelf
from edge_node.errors import ShelfFault
from runtime import logs

log = logs.get("disk_cache")

CHECK_TIMEOUT_S = 120.0
LOCK_TIMEOUT_S = 150.0  # longer than the check of whoever holds it
_LOOK_EVERY_S = 0.05
# A file this much larger than allowed, from when more was allowed, is begun anew.
_TOO_LARGE = 1.25


class Place:
    """The file is in `folder`/answers-<format>. `stop` says when there is no use for it."""

    def __init__(self, folder: Path, stop: Callable[[], bool]) -> None:
        self._folder = folder
        self._home = folder / f"answers-{record.FORMAT}"
        self._stop = stop
        self._lock: int | None = None
        self._pause = threading.Event()  # never set: to wait a moment
        self.damaged = False  # what is there must go before it is opened again

    def open(self, max_bytes: int) -> Shelf | None:
        """What is there, or a new one; None when it was stopped. Raises `ShelfFault`; `close` it
        afterwards in any case, once the shelf is closed."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder.chmod(0o700)
            self._lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            if self._locked(fcntl.LOCK_EX):
                self._prepare(max_bytes)
            elif self.damaged:
                raise ShelfFault("busy", "others use what is damaged; it is tried again")
            if self._stop() or not self._share():
                return None
            self._home.mkdir(mode=0o700, exist_ok=True)
            return Shelf(self._home, max_bytes)
        except OSError as error:
            raise ShelfFault("other", f"{self._folder}: {error}") from error

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _locked(self, how: int) -> bool:
        assert self._lock is not None  # it has been opened
        try:
            fcntl.flock(self._lock, how | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _share(self) -> bool:
        """Hold the lock with others, once nobody holds it alone."""
        for _ in range(int(LOCK_TIMEOUT_S / _LOOK_EVERY_S)):
            if self._locked(fcntl.LOCK_SH):
                return True
            if self._stop():
                return False
            self._pause.wait(_LOOK_EVERY_S)
        raise ShelfFault("busy", f"{self._folder} has been locked for {LOCK_TIMEOUT_S:g} s")

    def _prepare(self, max_bytes: int) -> None:
        """Nobody else is there: delete what cannot be used."""
        for other in self._folder.glob("answers-*"):
            if other != self._home:
                shutil.rmtree(other, ignore_errors=True)
        file = self._home / "data.mdb"
        if not file.exists():
            self.damaged = False
            return
        if self.damaged or file.stat().st_size > _TOO_LARGE * max_bytes or not self._sound():
            if self._stop():
                return
            log.warning("the cache on disk begins anew", folder=str(self._home))
            shutil.rmtree(self._home)
        self.damaged = False

    def _sound(self) -> bool:
        """Whether it can be read, as another process found out. True when stopped meanwhile."""
        program = [sys.executable, "-I", str(Path(check.__file__)), str(self._home)]
        nothing = subprocess.DEVNULL
        with subprocess.Popen(program, stdin=nothing, stdout=nothing, stderr=nothing) as child:
            for _ in range(int(CHECK_TIMEOUT_S / _LOOK_EVERY_S)):
                code = child.poll()
                if code is not None:
                    return code == 0
                if self._stop():
                    child.kill()
                    return True
                self._pause.wait(_LOOK_EVERY_S)
            child.kill()
        return False
