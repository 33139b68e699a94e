"""Which replica directs: the one whose name lies under `keys.LEADER`, for as long as its lease.

The lease is short and kept alive four times in its life, so that another replica takes over soon
after the holder died: its lease ends, the others' watches tell them, and the first to write its
name wins. Two things keep a deposed holder from doing harm:

1. It stops leading by its own clock, a margin before its lease can have ended. The time counts
   from before the request that renewed it, so a process that was frozen wakes up not leading.
2. Whatever it writes carries `guard()`: the transaction holds only if the key is still the one
   that this term wrote. Clocks may lie, a member of etcd that lost its leadership may renew a
   lease once more before it knows: the guard is what counts.

A term outlives a while without the store: it lapses, and goes on once the lease is renewed, for as
long as etcd kept the key, since nobody can have written in between. etcd's leases stand still
while it is down.

etcd counts leases in whole seconds, and grants at least three halves of its election timeout,
rounded up: 2 s with its defaults. It looks for ended leases twice a second.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from random import Random

import msgspec
from msgspec import Struct

from control_plane import keys
from control_plane.store.base import Entry, Guard, Listing, Put, Relisted, Store
from control_plane.store.errors import Conflict, LeaseLost, StoreUnavailable
from runtime import logs
from runtime.backoff import Backoff
from runtime.clock import Clock
from runtime.errors import TradewindError
from runtime.metrics import Sample

log = logs.get("election")

RENEWALS = 4  # of the lease, in its time to live
MARGIN = 0.25  # of the time to live: covers clocks of which one runs that much faster
JITTER_S = 0.1  # candidates do not all campaign at the same moment
RETRY_MIN_S, RETRY_MAX_S = 0.05, 0.5
REVOKE_S = 1.0  # how long a replica that stops may take to hand over
LAPSE_CHECK_S = 0.01


class NotLeading(TradewindError):
    """This replica does not direct, or cannot be sure that it does."""

    retryable = True


class Term(Struct, frozen=True):
    """This replica's time as the director: the key's revision is the term's number."""

    revision: int
    lease: int
    since_s: float  # wall time


class Leader(Struct, frozen=True):
    """Who directs, as the store says: as every replica knows it."""

    name: str  # empty: what lies there is no replica's claim, and nobody directs
    revision: int
    since_s: float  # wall time, by that replica's clock


class _Claim(Struct, frozen=True):
    """What lies under the key, as JSON."""

    replica: str
    since_s: float


class Election:
    """Use within one event loop: `start()`, read `leading` and `leader`, `await close()`.

    `on_change` callbacks run on the loop when this replica begins or ceases to lead, and when the
    leader became another one. `leading` may end between two calls of them: read it where it
    matters.
    """

    def __init__(
        self, store: Store, replica: str, lease_ttl_s: float, clock: Clock, rng: Random
    ) -> None:
        self._store = store
        self._replica = replica
        self._ttl_s = lease_ttl_s
        self._clock = clock
        self._rng = rng
        self._listeners: list[Callable[[], None]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._leader: Leader | None = None
        self._seen = 0  # the revision up to which the key has been followed; 0: not at all
        self._moved = asyncio.Event()  # the key was, since this was last cleared
        self._lease = 0  # ours, from its grant to its end
        self._term: Term | None = None
        self._until_s = 0.0  # by our clock, which `_term` ends at
        self._lapse: asyncio.TimerHandle | None = None
        self._told: tuple[bool, int] = (False, 0)
        self._changes = 0

    @property
    def leading(self) -> Term | None:
        """This replica's term, if it is certain now that nobody else leads."""
        return self._term if self._clock.now() < self._until_s else None

    @property
    def leader(self) -> Leader | None:
        """Who leads by the store, as last heard; None where nobody does or nothing was heard."""
        return self._leader

    def guard(self) -> Guard:
        """What every transaction of a director must carry. Raises `NotLeading`."""
        term = self.leading
        if term is None:
            raise NotLeading(
                f"{self._replica} does not direct",
                hint=f"{self._leader.name} does" if self._leader else "nobody does, for now",
            )
        return Guard(keys.LEADER, term.revision)

    def on_change(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._follow_forever(), name="election-watch"),
            asyncio.create_task(self._run_forever(), name="election"),
        ]

    async def close(self) -> None:
        """Cease to lead, and hand over: the others need not wait for the lease to end."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._resign("this replica stops")
        if self._lapse is not None:
            self._lapse.cancel()
        await self._give_back()

    def samples(self) -> list[Sample]:
        name = "tradewind_director_"
        term = self._leader.revision if self._leader else 0
        leading = self.leading is not None
        return [
            Sample(name + "leading", "Whether this replica directs.", leading),
            Sample(name + "term", "The director's term; 0: there is none.", term),
            Sample(name + "changes_total", "Changes of director that were seen.", self._changes),
        ]

    async def _follow_forever(self) -> None:
        backoff = Backoff(RETRY_MIN_S, RETRY_MAX_S, self._rng.random)
        while True:
            try:
                await self._follow(backoff)
            except StoreUnavailable:
                pass  # the store's own log says so
            except Exception:
                log.exception("following the election failed")
            await asyncio.sleep(backoff.next_s())

    async def _follow(self, backoff: Backoff) -> None:
        listing = await self._store.list(keys.LEADER)
        backoff.reset()
        self._begin_at(listing)
        watch = self._store.watch(keys.LEADER, after=listing.revision)
        async with contextlib.aclosing(watch):
            async for item in watch:
                if isinstance(item, Relisted):
                    self._begin_at(item.listing)
                elif (entry := _of_leader(item.puts)) is not None:
                    self._see(entry, item.revision)
                elif keys.LEADER in item.deletes:
                    self._see(None, item.revision)

    def _begin_at(self, listing: Listing) -> None:
        """What the watch gives next follows on this."""
        self._seen = 0  # a store restored from a backup counts from a lower revision again
        self._see(_of_leader(listing.entries), listing.revision)

    async def _look(self) -> None:
        """Read the key, beside the watch."""
        listing = await self._store.list(keys.LEADER)
        self._see(_of_leader(listing.entries), listing.revision)

    def _see(self, entry: Entry | None, revision: int) -> None:
        """The key is, or was, so at `revision`."""
        if revision < self._seen:
            return
        self._seen = revision
        self._leader = _leader(entry) if entry else None
        self._moved.set()
        term = self._term
        if term is not None and (entry.revision if entry else 0) != term.revision <= revision:
            self._resign("its key was removed")
        self._tell()

    async def _run_forever(self) -> None:
        backoff = Backoff(RETRY_MIN_S, RETRY_MAX_S, self._rng.random)
        while True:
            try:
                await self._until_vacant()
                if await self._campaign():
                    backoff.reset()
                    await self._hold()
                continue
            except LeaseLost:
                self._resign("its lease has ended")
                self._lease = 0
            except StoreUnavailable as error:
                log.info("the election waits for the store", reason=error.message)
                self._resign("the store does not answer")
            except Exception:
                log.exception("the election failed")
                self._resign("of an error")
            await self._give_back()
            await asyncio.sleep(backoff.next_s())

    async def _until_vacant(self) -> None:
        while True:
            self._moved.clear()
            if self._seen and self._leader is None:
                await asyncio.sleep(self._rng.random() * JITTER_S)
                if self._leader is None:
                    return
            try:
                async with asyncio.timeout(self._ttl_s):
                    await self._moved.wait()
            except TimeoutError:
                await self._look()  # in case that the watch is stuck: a read finds another member

    async def _campaign(self) -> bool:
        """Try to become the director; whether that worked."""
        asked_s, since_s = self._clock.now(), self._clock.wall()
        self._lease = await self._store.grant(self._ttl_s)
        claim = msgspec.json.encode(_Claim(self._replica, since_s))
        try:
            revision = await self._store.transact(
                [Guard(keys.LEADER, 0)], [Put(keys.LEADER, claim, self._lease)]
            )
        except Conflict:
            await self._give_back()
            await self._look()
            return False
        # Where the outcome is unknown, `_run_forever` ends the lease, and with it what may have
        # been written, or may yet be.
        self._term = Term(revision, self._lease, since_s)
        self._extend(asked_s, self._ttl_s)
        if revision >= self._seen:
            self._see(Entry(keys.LEADER, claim, revision, self._lease), revision)
        else:
            await self._look()  # the watch was ahead of us: it may have gone again
        return True

    async def _hold(self) -> None:
        """Keep the lease alive until the term is over. Raises `LeaseLost`."""
        backoff = Backoff(RETRY_MIN_S, RETRY_MAX_S, self._rng.random)
        pause_s = self._ttl_s / RENEWALS
        while self._term is not None:
            self._moved.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._moved.wait()
                    continue
            asked_s = self._clock.now()
            try:
                lasts_s = await self._store.keep_alive(self._lease)
            except StoreUnavailable:
                pause_s = backoff.next_s()
            else:
                self._extend(asked_s, lasts_s)
                backoff.reset()
                pause_s = self._ttl_s / RENEWALS
        await self._give_back()

    def _extend(self, asked_s: float, lasts_s: float) -> None:
        """The lease was renewed, by a request sent at `asked_s`."""
        lasts_s = min(lasts_s, self._ttl_s)
        self._until_s = asked_s + lasts_s - MARGIN * self._ttl_s
        self._tell()
        self._watch_lapse()

    def _watch_lapse(self) -> None:
        if self._lapse is not None:
            self._lapse.cancel()
        left_s = max(self._until_s - self._clock.now(), LAPSE_CHECK_S)
        self._lapse = asyncio.get_running_loop().call_later(left_s, self._may_have_lapsed)

    def _may_have_lapsed(self) -> None:
        self._tell()
        if self.leading is not None:
            self._watch_lapse()

    def _resign(self, why: str) -> None:
        """This term is over."""
        if self._term is None:
            return
        log.warning("directs no more", replica=self._replica, term=self._term.revision, why=why)
        self._term = None
        self._moved.set()
        self._tell()

    async def _give_back(self) -> None:
        """End our lease, if that is quick; else it ends by itself."""
        lease, self._lease = self._lease, 0
        if lease:
            with contextlib.suppress(StoreUnavailable, TimeoutError):
                async with asyncio.timeout(REVOKE_S):
                    await self._store.revoke(lease)

    def _tell(self) -> None:
        """Log and announce what became different since the last time."""
        leading, term = self.leading is not None, self._leader.revision if self._leader else 0
        if (leading, term) == self._told:
            return
        was_leading, last_term = self._told
        self._told = (leading, term)
        if leading and not was_leading:
            log.info("directs", replica=self._replica, term=term)
        elif was_leading and not leading and self._term is not None:
            log.warning("pauses directing: the lease could not be renewed", term=term)
        if term != last_term and self._leader is not None:
            self._changes += 1
            log.info("director", replica=self._leader.name, term=term)
        for listener in self._listeners:
            listener()


def _of_leader(entries: tuple[Entry, ...]) -> Entry | None:
    return next((entry for entry in entries if entry.key == keys.LEADER), None)


def _leader(entry: Entry) -> Leader:
    """What is not ours to read is somebody all the same: its holder's lease decides."""
    try:
        claim = msgspec.json.decode(entry.value, type=_Claim)
    except msgspec.MsgspecError:
        return Leader("", entry.revision, 0.0)
    return Leader(claim.replica, entry.revision, claim.since_s)
