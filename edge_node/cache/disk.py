"""Answers on disk, shared by the workers of one edge, there again after a restart.

Reading is done where requests are served: the file is mapped into memory, so a hit costs
microseconds, a page that is not in memory one read of the disk. Everything else has a thread of
its own: opening, checking, writing in batches, evicting. Whatever goes wrong with the disk, this
tier is off for a while, which is logged once and counted, and serving goes on without it.

Beside the file lies a lock: whoever uses it holds the lock together with others, whoever checks or
deletes it holds it alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from edge_node.cache import record
from edge_node.cache.key import AnswerKey
from edge_node.cache.place import Place
from edge_node.cache.shelf import MIN_BYTES, Shelf
from edge_node.errors import ShelfFault
from edge_node.front.replies import Answer
from runtime import logs
from runtime.clock import Clock
from runtime.metrics import Sample

log = logs.get("disk_cache")

PENDING_MAX = 2048  # answers that wait to be written
PENDING_MAX_BYTES = 8 * 2**20
BATCH = 256  # answers in one transaction
BATCH_SHARE = 64  # of the file, in one transaction: LMDB frees what it replaces later
GATHER_S = 0.1  # how long the first of a batch waits for others
WRITES_PER_S = 500.0  # more answers than that are not written: serving goes first
WRITES_BURST = 2000.0
RETRY_S = 30.0  # after a fault
TIDY_S = 30.0  # how often it is looked after when there is nothing to do
LOOP_TIMEOUT_S = 5.0
# What can be helped by opening it again: by an empty one, where it is damaged.
_AT_ONCE = ("damaged", "reopen")
# What does not keep from reading; LMDB tells a full disk as an I/O error at times.
_WRITING_ALONE = ("space", "other")


class DiskTier(Protocol):
    """Answers that survive a restart. Nothing here raises, or waits for other processes."""

    def find(self, key: AnswerKey, late_s: float) -> tuple[Answer, float] | None:
        """An answer and how long it is still good, in seconds: below 0 where its time is over,
        which is so for less than `late_s`."""
        ...

    def keep(self, key: AnswerKey, answer: Answer, ttl_s: float) -> None:
        """Write it, soon."""
        ...

    def limit(self, max_bytes: int, share: float) -> None:
        """How much it may hold from now on, and a tenant of it."""
        ...


class _Pending(Struct, frozen=True):
    key: AnswerKey
    answer: Answer
    written_s: float
    ttl_s: float


class DiskCache:
    """`DiskTier` of one worker. `start` and `close` it in the event loop that reads.

    `folder` is made if need be; `cap_bytes` bounds the file whatever the policy says.
    """

    def __init__(self, folder: Path, cap_bytes: int, clock: Clock) -> None:
        self._place = Place(folder, lambda: self._closing)
        self._cap_bytes = cap_bytes
        self._clock = clock
        self._shelf: Shelf | None = None
        self._wanted = (0, 1.0)  # bytes, share
        self._pending: deque[_Pending] = deque()
        self._added_bytes = 0  # to what waits, by the loop
        self._taken_bytes = 0  # from it, by the thread
        self._retry_at = float("-inf")
        self._write_at = float("-inf")
        self._opened_at = float("-inf")
        self._allowance, self._allowed_at = WRITES_BURST, clock.now()
        self._wake = threading.Event()
        self._closing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._gather = threading.Event()  # never set: to wait for more of a batch
        self._thread = threading.Thread(target=self._main, name="disk-cache", daemon=True)
        self._broken: ShelfFault | None = None  # found while reading
        self._told = ""  # what was logged last
        self.hits = 0
        self.misses = 0
        self.written = 0
        self.dropped = 0  # answers that were not written: too many, or too large
        self.disbelieved = 0  # damaged, or from the future
        self.evicted = 0
        self.used_bytes = 0
        self.faults: dict[str, int] = {}

    # In the event loop

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def close(self, timeout_s: float = 1.0) -> None:
        """Write what waits, if that is quick, and let go of the file."""
        self._closing = True
        self._wake.set()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, timeout_s)

    @property
    def open(self) -> bool:
        return self._shelf is not None

    @property
    def pending(self) -> int:
        return len(self._pending)

    def limit(self, max_bytes: int, share: float) -> None:
        wanted = (min(max_bytes, self._cap_bytes), share)
        if wanted != self._wanted:
            self._wanted = wanted
            self._wake.set()

    def find(self, key: AnswerKey, late_s: float) -> tuple[Answer, float] | None:
        shelf = self._shelf
        if shelf is None or self._wanted[0] < MIN_BYTES:
            return None
        name = record.name_of(key)
        if name is None:
            return None
        try:
            kept = shelf.get(name)
        except ShelfFault as error:
            self._broken, self._shelf = error, None
            self._wake.set()
            return None
        if kept is None:
            self.misses += 1
            return None
        return self._believed(record.decode(name, kept), late_s)

    def _believed(self, stored: record.Stored | None, late_s: float) -> tuple[Answer, float] | None:
        wall_s = self._clock.wall()
        left_s = None if stored is None else record.left_s(stored, wall_s, late_s)
        if stored is None or wall_s < stored.written_s - record.FUTURE_S:
            self.disbelieved += 1
        elif left_s is not None:
            self.hits += 1
            return record.answer_of(stored), left_s
        self.misses += 1
        return None

    def keep(self, key: AnswerKey, answer: Answer, ttl_s: float) -> None:
        if self._wanted[0] < MIN_BYTES:
            return
        size, waiting = answer.size_bytes, self._added_bytes - self._taken_bytes
        room = len(self._pending) < PENDING_MAX and waiting + size <= PENDING_MAX_BYTES
        if self._shelf is None or not room or not self._may_write():
            self.dropped += 1
            return
        self._added_bytes += size
        self._pending.append(_Pending(key, answer, self._clock.wall(), ttl_s))
        if len(self._pending) == 1:
            self._wake.set()

    def _may_write(self) -> bool:
        now = self._clock.now()
        grown = self._allowance + WRITES_PER_S * max(0.0, now - self._allowed_at)
        self._allowance, self._allowed_at = min(WRITES_BURST, grown), now
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True

    # In the thread

    def _main(self) -> None:
        shelf: Shelf | None = None
        while not self._closing:
            try:
                shelf = self._turn(shelf)
            except ShelfFault as error:
                self._failed(error)
                self._let_go(shelf)
                shelf = None
            except Exception:  # the thread's outermost edge: the tier is off, serving goes on
                log.exception("the cache on disk failed in a way that was not foreseen")
                self._failed(ShelfFault("other", "an internal error"))
                self._let_go(shelf)
                shelf = None
        with contextlib.suppress(ShelfFault):
            if shelf is not None:
                self._write(shelf)
        self._let_go(shelf)

    def _turn(self, shelf: Shelf | None) -> Shelf | None:
        """Do what there is to do, and wait for more."""
        max_bytes, share = self._wanted
        broken, self._broken = self._broken, None
        if broken is not None and shelf is not None:
            raise broken
        if shelf is not None and not MIN_BYTES <= max_bytes <= shelf.max_bytes:
            self._let_go(shelf)
            shelf = None
        if shelf is None and max_bytes >= MIN_BYTES and self._clock.now() >= self._retry_at:
            shelf = self._open(max_bytes)
        if shelf is not None:
            shelf.limit(max_bytes, share)
            if not self._write(shelf):
                shelf.shrink()
                shelf.forget_readers()
            self.used_bytes = shelf.used_bytes
        self._rest(shelf)
        return shelf

    def _rest(self, shelf: Shelf | None) -> None:
        if self._pending and shelf is not None and self._clock.now() >= self._write_at:
            return
        retry_s = self._retry_at - self._clock.now()
        self._wake.wait(TIDY_S if shelf is not None else min(TIDY_S, max(0.05, retry_s)))
        self._wake.clear()
        if self._pending and not self._closing:
            self._gather.wait(GATHER_S)

    def _open(self, max_bytes: int) -> Shelf | None:
        shelf = self._place.open(max_bytes)
        if shelf is None:
            self._place.close()
            return None
        shelf.limit(max_bytes, self._wanted[1])
        self._opened_at = self._clock.now()
        self._shelf = shelf
        if self._told:
            self._told = ""
            log.info("the cache on disk is back")
        return shelf

    def _write(self, shelf: Shelf) -> bool:
        """What waits to be written; False if that is nothing."""
        if not self._pending or self._clock.now() < self._write_at:
            return False
        batch = self._batch(shelf.max_bytes // BATCH_SHARE)
        named = [(record.name_of(p.key), p) for p in batch]
        encoded = [
            (name, record.encode(name, p.answer, p.written_s, p.ttl_s))
            for name, p in named
            if name is not None
        ]
        try:
            kept = self._put(shelf, encoded)
        except ShelfFault as error:
            self.dropped += len(batch)
            if error.kind not in _WRITING_ALONE:
                raise
            self._failed(error)  # what is there can still be read
            self._write_at, self._retry_at = self._retry_at, 0.0
            return True
        self.written += kept
        self.dropped += len(batch) - kept
        return True

    def _put(self, shelf: Shelf, encoded: list[tuple[bytes, bytes]]) -> int:
        before = shelf.evicted
        try:
            return shelf.put(encoded)
        except ShelfFault as error:
            if error.kind != "full":
                raise
        try:  # its pages are emptier than was thought
            shelf.make_room()
            return shelf.put(encoded)
        except ShelfFault as error:
            if error.kind == "full":
                raise ShelfFault("damaged", error.message) from error
            raise
        finally:
            self.evicted += shelf.evicted - before

    def _batch(self, most_bytes: int) -> list[_Pending]:
        """The next that are to be written: at least one."""
        batch: list[_Pending] = []
        end = self._taken_bytes + most_bytes
        while self._pending and len(batch) < BATCH and self._taken_bytes < end:
            pending = self._pending.popleft()
            self._taken_bytes += pending.answer.size_bytes
            batch.append(pending)
        return batch

    def _failed(self, fault: ShelfFault) -> None:
        kind = fault.kind
        self.faults[kind] = self.faults.get(kind, 0) + 1
        now = self._clock.now()
        lasted = now - self._opened_at > RETRY_S / 10
        self._retry_at = now if kind in _AT_ONCE and lasted else now + RETRY_S
        self._place.damaged = self._place.damaged or kind == "damaged"
        if kind != self._told and kind != "reopen":
            self._told = kind
            log.warning("the cache on disk has failed", why=kind, error=fault.message)

    def _let_go(self, shelf: Shelf | None) -> None:
        """Close it, once nobody reads."""
        self._shelf = None
        if shelf is not None and self._nobody_reads():
            shelf.close()
        self._place.close()

    def _nobody_reads(self) -> bool:
        """Wait for the event loop to come by: what it reads, it reads at one go."""
        passed = threading.Event()
        assert self._loop is not None  # it has started this thread
        try:
            self._loop.call_soon_threadsafe(passed.set)
        except RuntimeError:
            return True  # the loop has ended
        while not passed.wait(LOOP_TIMEOUT_S):
            if self._closing:
                return False
        return True

    def samples(self) -> Iterable[Sample]:
        """For the worker's metrics."""
        name = "tradewind_edge_disk_cache_"
        yield Sample(name + "open", "Whether it is in use.", self.open)
        yield Sample(name + "bytes", "Held by all workers, about.", self.used_bytes)
        yield Sample(name + "max_bytes", "Its limit.", self._wanted[0])
        yield Sample(name + "pending", "Answers to be written.", len(self._pending))
        counted = (
            ("hits", "Answers found on disk.", self.hits),
            ("misses", "Answers looked for in vain.", self.misses),
            ("written", "Answers written.", self.written),
            ("dropped", "Answers that were not: too many, or too large.", self.dropped),
            ("disbelieved", "Answers found damaged, or from the future.", self.disbelieved),
            ("evicted", "Evicted for room by this worker.", self.evicted),
        )
        for what, text, value in counted:
            yield Sample(f"{name}{what}_total", text, value)
        for kind, count in sorted(self.faults.items()):
            yield Sample(name + "faults_total", "Times it failed.", count, {"why": kind})
