"""A store in this process's memory: for tests, and for a control plane without etcd.

It behaves as etcd does, compaction included, and can be told to fail as etcd does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from control_plane.store.base import (
    Change,
    Delete,
    Entry,
    Guard,
    Listing,
    Operation,
    Put,
    Relisted,
    StoreStatus,
    check_key,
    check_transaction,
    check_ttl,
    check_watch,
    encode_key,
)
from control_plane.store.errors import (
    Conflict,
    InvalidRequest,
    LeaseLost,
    StoreClosed,
    StoreUnavailable,
)
from runtime.clock import Clock, SystemClock

_KEPT_CHANGES = 10_000
_EXPIRY_MIN_S = 0.01


class MemoryStore:
    """See `control_plane.store.base`. Keeps the last `kept_changes` revisions for watches.

    `cut` and `mend` stand for the loss of etcd; `lose_next_reply` for a transaction that is
    applied although its answer never arrives.
    """

    def __init__(self, clock: Clock | None = None, kept_changes: int = _KEPT_CHANGES) -> None:
        self._clock = clock or SystemClock()
        self._kept_changes = kept_changes
        self._entries: dict[str, Entry] = {}
        self._revision = 1  # of the empty store, as in etcd: the first change is at 2
        self._history: list[Change] = []  # every revision since the forgotten ones, no gaps
        self._forgotten = 0
        self._woken: set[asyncio.Future[None]] = set()
        self._cut = False
        self._lose_next_reply = False
        self._closed = False
        self._leases: dict[int, tuple[float, float]] = {}  # lease -> time to live, end by the clock
        self._granted = 0
        self._expiry: asyncio.TimerHandle | None = None
        self._status = StoreStatus(True, self._clock.wall(), "in memory")

    @property
    def status(self) -> StoreStatus:
        return self._status

    @property
    def revision(self) -> int:
        """The revision of the latest change."""
        return self._revision

    async def get(self, key: str) -> Entry | None:
        check_key(key)
        await self._arrive()
        return self._entries.get(key)

    async def list(self, prefix: str) -> Listing:
        check_watch(prefix, 0)
        await self._arrive()
        return self._listing(prefix)

    def watch(self, prefix: str, after: int) -> MemoryWatch:
        check_watch(prefix, after)
        return MemoryWatch(self, prefix, after)

    async def transact(self, guards: Sequence[Guard], operations: Sequence[Operation]) -> int:
        check_transaction(guards, operations)
        await self._arrive()
        found = {guard.key: self._revision_of(guard.key) for guard in guards}
        expected = {guard.key: guard.revision for guard in guards}
        differ = {key: at for key, at in found.items() if at != expected[key]}
        if differ:
            raise Conflict(differ, expected)
        for operation in operations:
            if isinstance(operation, Put) and operation.lease not in (0, *self._leases):
                raise LeaseLost(operation.lease)
        self._apply(operations)
        if self._lose_next_reply:
            self._lose_next_reply = False
            raise StoreUnavailable("the store's answer was lost", ambiguous=True)
        return self._revision

    async def grant(self, ttl_s: float) -> int:
        check_ttl(ttl_s)
        await self._arrive()
        self._granted += 1
        self._leases[self._granted] = (ttl_s, self._clock.now() + ttl_s)
        self._arm()
        return self._granted

    async def keep_alive(self, lease: int) -> float:
        await self._arrive()
        if lease not in self._leases:
            raise LeaseLost(lease)
        ttl_s, _ = self._leases[lease]
        self._leases[lease] = (ttl_s, self._clock.now() + ttl_s)
        return ttl_s

    async def revoke(self, lease: int) -> None:
        await self._arrive()
        self._end_lease(lease)

    def expire(self) -> None:
        """End the leases whose time has come. Every call and a timer do; a test with a clock of
        its own may."""
        now = self._clock.now()
        for lease in [lease for lease, (_, end) in self._leases.items() if end <= now]:
            self._end_lease(lease)

    async def close(self) -> None:
        self._closed = True
        if self._expiry is not None:
            self._expiry.cancel()
        self._wake()

    def compact(self, revision: int) -> None:
        """Forget history up to and including `revision`, as etcd's compaction does."""
        if revision > self._revision:
            raise InvalidRequest((f"revision {revision} is not there yet",))
        self._history = [change for change in self._history if change.revision > revision]
        self._forgotten = max(self._forgotten, revision)
        self._wake()

    def cut(self, detail: str = "cut off") -> None:
        """From now on calls raise `StoreUnavailable` and watches stay silent."""
        self._cut = True
        if self._expiry is not None:
            self._expiry.cancel()
        self._status = StoreStatus(False, self._clock.wall(), detail)

    def mend(self) -> None:
        """Undo `cut`: calls work again, watches go on where they were, leases begin anew."""
        now = self._clock.now()
        self._leases = {lease: (ttl_s, now + ttl_s) for lease, (ttl_s, _) in self._leases.items()}
        self._cut = False
        if self._leases:
            self._arm()
        self._status = StoreStatus(True, self._clock.wall(), "in memory")
        self._wake()

    def lose_next_reply(self) -> None:
        """The next transaction is applied, and raises `StoreUnavailable(ambiguous=True)`."""
        self._lose_next_reply = True

    async def _arrive(self) -> None:
        # Others run in between, as they would on the way to a real store.
        await asyncio.sleep(0)
        if self._closed:
            raise StoreClosed("the store is closed")
        if self._cut:
            raise StoreUnavailable(f"the store does not answer: {self._status.detail}")
        self.expire()

    def _arm(self) -> None:
        """See to it that watches hear of leases that end although nobody calls."""
        if self._expiry is not None:
            self._expiry.cancel()
        if not self._leases or self._cut or self._closed:
            self._expiry = None
            return
        left_s = min(end for _, end in self._leases.values()) - self._clock.now()
        loop = asyncio.get_running_loop()
        # Not sooner than some milliseconds: the clock may be one that only a test moves.
        self._expiry = loop.call_later(max(left_s, _EXPIRY_MIN_S), self._expire_and_arm)

    def _expire_and_arm(self) -> None:
        self.expire()
        self._arm()

    def _end_lease(self, lease: int) -> None:
        if self._leases.pop(lease, None) is not None:
            held = sorted(key for key, entry in self._entries.items() if entry.lease == lease)
            self._apply([Delete(key) for key in held])

    def _listing(self, prefix: str) -> Listing:
        keys = sorted((key for key in self._entries if key.startswith(prefix)), key=encode_key)
        return Listing(self._revision, tuple(self._entries[key] for key in keys))

    def _revision_of(self, key: str) -> int:
        entry = self._entries.get(key)
        return entry.revision if entry else 0

    def _apply(self, operations: Sequence[Operation]) -> None:
        revision = self._revision + 1
        puts = tuple(
            Entry(op.key, op.value, revision, op.lease) for op in operations if isinstance(op, Put)
        )
        deletes = tuple(
            op.key for op in operations if isinstance(op, Delete) and op.key in self._entries
        )
        if not puts and not deletes:
            return
        self._entries.update((entry.key, entry) for entry in puts)
        for key in deletes:
            del self._entries[key]
        self._revision = revision
        self._history.append(Change(revision, puts, deletes))
        if len(self._history) > 2 * self._kept_changes:
            del self._history[: -self._kept_changes]
            self._forgotten = self._history[0].revision - 1
        self._wake()

    def _wake(self) -> None:
        for future in self._woken:
            if not future.done():
                future.set_result(None)
        self._woken.clear()

    def _next(self, prefix: str, after: int) -> tuple[Change | Relisted | None, int]:
        """What a watch gives next, and up to which revision it has then seen everything."""
        # Ahead of the store: it lost revisions that this watch has seen, so nothing fits.
        if after < self._forgotten or after > self._revision:
            return Relisted(self._listing(prefix)), self._revision
        begin = len(self._history) - (self._revision - after)
        for change in self._history[max(0, begin) :]:
            puts = tuple(entry for entry in change.puts if entry.key.startswith(prefix))
            deletes = tuple(key for key in change.deletes if key.startswith(prefix))
            if puts or deletes:
                return Change(change.revision, puts, deletes), change.revision
        return None, self._revision

    async def _changed(self) -> None:
        future = asyncio.get_running_loop().create_future()
        self._woken.add(future)
        try:
            await future
        finally:
            self._woken.discard(future)


class MemoryWatch:
    """A cursor into the store's history: it buffers nothing."""

    def __init__(self, store: MemoryStore, prefix: str, after: int) -> None:
        self._store = store
        self._prefix = prefix
        self._after = after
        self._closed = False

    def __aiter__(self) -> MemoryWatch:
        return self

    async def __anext__(self) -> Change | Relisted:
        store = self._store
        while not (self._closed or store._closed):
            if not store._cut:
                item, self._after = store._next(self._prefix, self._after)
                if item is not None:
                    return item
            await store._changed()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self._closed = True
        self._store._wake()
