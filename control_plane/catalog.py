"""What the store holds, as a snapshot that is always whole: this replica's view of the world.

Follows the store's watch and keeps the last good snapshot on disk. While the store is away the
snapshot stays, marked stale, and after a restart it comes from disk. What somebody else writes
into the store cannot take it down:

- a value that is no resource leaves the last good one of that name in place;
- a set that does not fit together (a dangling reference) leaves the last good snapshot in place;
- a store that is suddenly empty does too: a wiped or mistaken cluster must not withdraw
  everything from everywhere.

Each of these is a problem that `tradewind status` shows until it is mended.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random

import msgspec

from control_plane import keys, rollout_record
from control_plane.rollout_record import RolloutRecord
from control_plane.store.base import Change, Entry, Listing, Store
from control_plane.store.errors import StoreUnavailable
from control_plane.store.following import follow
from runtime import logs
from runtime.atomic_file import CheckedFile
from runtime.clock import Clock
from runtime.validation import InvalidDocument, Problem
from topology import resources as res
from topology.resources import Resource
from topology.snapshot import Snapshot
from topology.wire.last_good import LastGood

log = logs.get("catalog")

_STATUS_POLL_S = 0.1
_WATCH_PATIENCE_S = 0.25


class View(msgspec.Struct, frozen=True):
    """What a replica serves now, and how much it can be trusted."""

    snapshot: Snapshot
    stale_since_s: float | None  # Unix time; None while the store is followed
    problems: tuple[Problem, ...]  # what in the store could not be used
    seen_revision: int  # how far the store has been followed; above the snapshot's: see problems
    withheld: bool  # the store is empty, and the snapshot is kept in spite of it
    rollout: RolloutRecord | None = None  # the last one that was staged, under way or over
    rollout_revision: int = 0  # at which it was written; 0: there is none, or it is from disk

    @property
    def ready(self) -> bool:
        """There is something to serve, be it that nothing is configured."""
        return self.seen_revision > 0 or self.snapshot.revision > 0


class Decoded:
    """The store's entries under `keys.RESOURCES`, each decoded once."""

    def __init__(self) -> None:
        self._good: dict[str, Resource] = {}
        self._bad: dict[str, InvalidDocument] = {}
        self._rollout_problems: tuple[Problem, ...] = ()
        self.rollout: RolloutRecord | None = None
        self.rollout_revision = 0

    def replace(self, entries: Iterable[Entry]) -> None:
        self._good.clear()
        self._bad.clear()
        self._take_rollout(None)
        self.put(entries)

    def put(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            if entry.key == keys.ROLLOUT:
                self._take_rollout(entry)
            if entry.key in keys.RESERVED:
                continue
            self.delete([entry.key])
            try:
                self._good[entry.key] = decode_entry(entry)
            except InvalidDocument as error:
                self._bad[entry.key] = error

    def delete(self, paths: Iterable[str]) -> None:
        for path in paths:
            if path == keys.ROLLOUT:
                self._take_rollout(None)
            self._good.pop(path, None)
            self._bad.pop(path, None)

    def _take_rollout(self, entry: Entry | None) -> None:
        """A damaged one counts as none: every node is served what the store holds."""
        self.rollout, self.rollout_revision, self._rollout_problems = None, 0, ()
        if entry is None:
            return
        self.rollout_revision = entry.revision
        try:
            self.rollout = rollout_record.decode(entry.value, entry.revision)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            allowed = "a rollout: all nodes are served the newest until one is written"
            self._rollout_problems = (Problem(entry.key, "", str(error), allowed),)

    @property
    def empty(self) -> bool:
        return not self._good and not self._bad

    def assemble(
        self, revision: int, last_good: Snapshot
    ) -> tuple[Snapshot, tuple[Problem, ...], bool]:
        """The snapshot to serve, what is wrong, and whether an empty store was disbelieved."""
        if self.empty and len(last_good):
            found = f"nothing, where revision {last_good.revision} had {len(last_good)} resources"
            allowed = (
                "a store that was not wiped; to accept this one, apply everything again, "
                "as `tradewind get -o yaml` shows it"
            )
            return last_good, (Problem(keys.RESOURCES, "", found, allowed),), True
        problems = self._rollout_problems
        problems += tuple(p for error in self._bad.values() for p in error.problems)
        resources = list(self._good.values())
        for path in self._bad:
            kept = last_good.get(keys.resource_at(path))
            if kept is not None:
                resources.append(kept)
        try:
            return Snapshot.build(revision, resources), problems, False
        except InvalidDocument as error:
            return last_good, problems + error.problems, False


def decode_entry(entry: Entry) -> Resource:
    """The resource in an entry, at the entry's revision, or `InvalidDocument`."""
    resource = res.decode(entry.value, entry.key)
    if keys.of_resource(resource.key) != entry.key:
        raise InvalidDocument(
            [Problem(entry.key, "name", str(resource.key), "the kind and name of its key")]
        )
    return msgspec.structs.replace(resource, revision=entry.revision)


def same_content(one: Snapshot, other: Snapshot) -> bool:
    """Whether two snapshots are the same at the same revision, so that one need not follow the
    other."""
    return (
        one.revision == other.revision
        and len(one) == len(other)
        and all(other.get(resource.key) == resource for resource in one)
    )


def _rollout_file(last_good: Path) -> CheckedFile:
    return CheckedFile(last_good.with_name(f"{last_good.name}.rollout"), "rollout")


class Catalog:
    """Use within one event loop: `start()`, read `view`, `await close()`.

    `on_change` callbacks run on the loop whenever `view` became another one.
    """

    def __init__(self, store: Store, last_good: Path | None, clock: Clock, rng: Random) -> None:
        self._store = store
        self._disk = LastGood(last_good) if last_good is not None else None
        self._rollout_disk = _rollout_file(last_good) if last_good is not None else None
        self._rng = rng
        self._decoded = Decoded()
        self._listed = False
        self._catching_up = asyncio.Lock()
        self._newest = 0  # of the entries that are no rollout
        self._listeners: list[Callable[[], None]] = []
        self._waiters: set[asyncio.Future[None]] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._view = View(
            snapshot=Snapshot.empty(),
            stale_since_s=clock.wall(),
            problems=(),
            seen_revision=0,
            withheld=False,
        )

    @property
    def view(self) -> View:
        """What was published last: each change of it was announced to `on_change`."""
        return self._view

    @property
    def view_now(self) -> View:
        """The same, with its staleness as it is at this moment, announced or not."""
        return msgspec.structs.replace(self._view, stale_since_s=self._stale_since_s())

    @property
    def disk_failures(self) -> int:
        """How many writes of the snapshot, or of the rollout beside it, failed."""
        return sum(file.failures for file in (self._disk, self._rollout_disk) if file is not None)

    @property
    def disk_behind(self) -> bool:
        """The disk does not hold what is served: a restart without the store would go back."""
        return any(not file.saved for file in (self._disk, self._rollout_disk) if file is not None)

    def on_change(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    def start(self) -> None:
        """Take up the snapshot on disk, then begin to follow the store."""
        kept = self._disk.load() if self._disk is not None else None
        if kept is not None:
            log.info("started from the last good snapshot", revision=kept.revision)
            self._publish(snapshot=kept, rollout=self._rollout_on_disk())
        self._tasks = [
            asyncio.create_task(self._follow(), name="catalog"),
            asyncio.create_task(self._poll_status(), name="catalog-status"),
        ]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._disk is not None:
            await self._disk.close()
        if self._rollout_disk is not None:
            await self._rollout_disk.close()

    async def reached(self, revision: int, timeout_s: float) -> bool:
        """Wait until the store has been followed up to `revision`; False when that took longer.

        The watch tells nothing of revisions that changed nothing under `keys.RESOURCES`: where it
        stays silent, the store is listed.
        """
        with contextlib.suppress(TimeoutError, StoreUnavailable):
            async with asyncio.timeout(timeout_s):
                while self._view.seen_revision < revision:
                    try:
                        async with asyncio.timeout(_WATCH_PATIENCE_S):
                            await self._changed()
                    except TimeoutError:
                        await self._catch_up(revision)
        return self._view.seen_revision >= revision

    async def _catch_up(self, revision: int) -> None:
        async with self._catching_up:
            if self._view.seen_revision >= revision or not self._listed:
                return
            listing = await self._store.list(keys.RESOURCES)
            if listing.revision > self._view.seen_revision:
                self._relist(listing)

    async def _changed(self) -> None:
        future = asyncio.get_running_loop().create_future()
        self._waiters.add(future)
        try:
            await future
        finally:
            self._waiters.discard(future)

    async def _follow(self) -> None:
        await follow(self._store, keys.RESOURCES, self._relist, self._apply, self._rng)

    def _relist(self, listing: Listing) -> None:
        self._decoded.replace(listing.entries)
        self._listed = True
        # Of the entries, not of the whole store: replicas agree on it whenever they listed.
        # Nor of the rollout, which moves on by itself and changes no resource.
        entries = (entry for entry in listing.entries if entry.key != keys.ROLLOUT)
        self._newest = max((entry.revision for entry in entries), default=0)
        self._assemble(self._newest, listing.revision)

    def _apply(self, change: Change) -> None:
        if change.revision <= self._view.seen_revision:
            return  # a listing overtook it
        self._decoded.put(change.puts)
        self._decoded.delete(change.deletes)
        touched = {entry.key for entry in change.puts} | set(change.deletes)
        if touched - {keys.ROLLOUT}:
            self._newest = change.revision
        self._assemble(self._newest, change.revision)

    def _assemble(self, revision: int, seen_revision: int) -> None:
        last = self._view.snapshot
        snapshot, problems, withheld = self._decoded.assemble(revision, last)
        if problems and problems != self._view.problems:
            log.error("the store holds what cannot be used", problems=[str(p) for p in problems])
        if same_content(snapshot, last):
            snapshot = last
        rollout = last_rollout = self._view.rollout
        if not withheld:
            rollout = self._decoded.rollout
        if self._rollout_disk is not None and rollout != last_rollout:
            # Before the snapshot: what only some nodes are to have must not look finished.
            self._rollout_disk.keep(rollout_record.encode(rollout) if rollout else b"")
        self._publish(
            snapshot=snapshot,
            problems=problems,
            seen_revision=seen_revision,
            withheld=withheld,
            rollout=rollout,
            rollout_revision=self._decoded.rollout_revision,
            stale_since_s=self._stale_since_s(),
        )
        if self._disk is not None and snapshot is not last:
            self._disk.keep(snapshot)

    def _rollout_on_disk(self) -> RolloutRecord | None:
        data = self._rollout_disk.load() if self._rollout_disk is not None else None
        if not data:
            return None
        try:
            return rollout_record.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            log.error("the rollout on disk is ignored", reason=str(error))
            return None

    async def _poll_status(self) -> None:
        while True:
            stale_since_s = self._stale_since_s()
            if stale_since_s != self._view.stale_since_s:
                try:
                    self._publish(stale_since_s=stale_since_s)
                except Exception:  # whatever a listener does, staleness goes on to be told
                    log.exception("telling of the store's state failed")
            await asyncio.sleep(_STATUS_POLL_S)

    def _stale_since_s(self) -> float | None:
        status = self._store.status
        if not status.available:
            return status.since_s
        return None if self._listed else self._view.stale_since_s

    def _publish(self, **changes: object) -> None:
        self._view = msgspec.structs.replace(self._view, **changes)
        for listener in self._listeners:
            listener()
        for future in self._waiters:
            if not future.done():
                future.set_result(None)
