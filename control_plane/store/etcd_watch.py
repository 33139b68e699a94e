"""A watch on etcd that outlives its connections.

It reads one response ahead of the consumer and no more: what a slow consumer has not taken stays
with etcd, and memory holds two responses at most (32 MiB each; commonly some KiB).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from etcd3 import etcdrpc
from google.protobuf.unknown_fields import UnknownFieldSet

from control_plane.store.assembly import Assembly, Event, OutOfOrder
from control_plane.store.base import Change, Listing, Relisted, decode_key, encode_key
from control_plane.store.errors import StoreUnavailable
from control_plane.store.etcd_failures import Failure, Kind, MemberFailed, failed
from control_plane.store.etcd_link import Link
from control_plane.store.etcd_members import CALLS, Member, Members
from control_plane.store.settings import EtcdSettings
from runtime import logs
from runtime.backoff import Backoff

log = logs.get("store")

# WatchCreateRequest.fragment = 8 and WatchResponse.fragment = 7 (etcd 3.4, rpc.proto): our stubs
# are older than these fields, so the first is written, and the second read, by number.
_FRAGMENT_PLEASE = b"\x40\x01"
_FRAGMENT_FIELD = 7
_PAUSE_MIN_S = 0.05


class EtcdWatch:
    """See `control_plane.store.base.Watch`. `relist` lists the prefix; `closed` is told once."""

    def __init__(
        self,
        members: Members,
        settings: EtcdSettings,
        prefix: str,
        after: int,
        relist: Callable[[str], Awaitable[Listing]],
        closed: Callable[[EtcdWatch], None],
    ) -> None:
        self._members = members
        self._attempt_s = settings.attempt_timeout_ms / 1000
        self._quiet_s = settings.watch_quiet_ms / 1000
        self._pause = Backoff(_PAUSE_MIN_S, settings.reconnect_max_ms / 1000, members.rng.random)
        self._prefix = prefix
        self._after = after
        self._relist = relist
        self._tell_closed = closed
        self._ready: deque[Change | Relisted] = deque()
        self._stream: _Stream | None = None
        self._must_relist = ""  # why, if so
        self._failures = 0  # in a row
        self._next_member: Member | None = None  # after a failure: the one to try next
        self._filling: asyncio.Task[None] | None = None
        self._closed = False

    def __aiter__(self) -> EtcdWatch:
        return self

    async def __anext__(self) -> Change | Relisted:
        while not self._ready:
            if self._closed:
                raise StopAsyncIteration
            # A task of its own, so that a caller who gives up waiting loses nothing: the next
            # call waits for the same one.
            filling = self._fill()
            await asyncio.wait({filling})
            if not filling.cancelled():
                filling.result()
        item = self._ready.popleft()
        if not self._ready and not self._closed:
            # Stay connected, and know whether we are, while the consumer is busy.
            self._fill()
        return item

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._ready.clear()
        filling, self._filling = self._filling, None
        if filling is not None:
            filling.cancel()
            await asyncio.wait({filling})
        await self._drop()
        self._members.health.forget(self)
        self._tell_closed(self)

    def _fill(self) -> asyncio.Task[None]:
        if self._filling is None or self._filling.done():
            self._filling = asyncio.create_task(self._fill_up())
        return self._filling

    async def _fill_up(self) -> None:
        while not (self._ready or self._closed):
            await self._advance()

    async def _advance(self) -> None:
        """Connect, list again, or take in one response: whatever comes next."""
        try:
            if self._must_relist:
                await self._list_again()
            elif self._stream is None:
                await self._connect()
            else:
                await self._receive(self._stream)
            return
        except MemberFailed as error:
            failure = error.failure
        except OutOfOrder as error:
            failure = Failure(Kind.NO_ANSWER, str(error), undone=False)
        except StoreUnavailable as error:
            failure = Failure(Kind.NOT_SERVING, error.message, undone=False)
        # Out here, no traceback keeps the failed connection alive.
        await self._drop()
        await self._recover(failure)

    async def _connect(self) -> None:
        member = self._next_member or self._members.order[0]
        self._next_member = self._members.following(member)
        stream = _Stream(member.open_link())
        try:
            await stream.open(self._prefix, self._after, self._attempt_s)
            if stream.head < self._after:
                await self._check_history(stream)
        except BaseException:
            await stream.close()
            raise
        self._stream = stream
        self._works(member.address)

    async def _check_history(self, stream: _Stream) -> None:
        """The member is behind us. That is fine if it only lags, but if the whole cluster is,
        it was restored from a backup: revisions will be used again, for other changes."""
        answer = await self._members.read(
            "Range", etcdrpc.RangeRequest(key=encode_key(self._prefix or "\0"), count_only=True)
        )
        if answer.header.revision < self._after:
            self._must_relist = f"etcd went back to revision {answer.header.revision}"
            raise failed(Kind.COMPACTED, self._must_relist)

    async def _receive(self, stream: _Stream) -> None:
        response = await stream.next(self._quiet_s, self._attempt_s, self._lives)
        self._ready.extend(
            stream.assembly.feed(map(_event, response.events), _is_fragment(response))
        )
        # Progress for all watches of a stream (id -1) may run ahead of events that were not sent
        # yet (etcd-io/etcd issue 15220), so only that for this one counts.
        if not response.events and not response.created and response.watch_id >= 0:
            stream.assembly.progress(response.header.revision)
        if stream.assembly.after > self._after:
            self._after = stream.assembly.after
            self._steady()

    async def _list_again(self) -> None:
        listing = await self._relist(self._prefix)
        log.info(
            "watch listed again", prefix=self._prefix, why=self._must_relist, after=self._after
        )
        self._must_relist = ""
        self._after = listing.revision
        self._ready.append(Relisted(listing))

    async def _recover(self, failure: Failure) -> None:
        """Decide what to do about a failure, and wait if it is not the first."""
        if self._members.access.closed:
            self._closed = True
            return
        if failure.kind in (Kind.COMPACTED, Kind.TOO_LARGE):
            self._must_relist = self._must_relist or failure.detail
        self._failures += 1
        if self._failures % len(self._members.order) == 0:
            # Every member had its turn.
            self._members.health.fails(self, f"watching {self._prefix}: {failure.detail}")
            await asyncio.sleep(self._pause.next_s())

    def _lives(self, address: str) -> None:
        self._steady()
        self._works(address)

    def _steady(self) -> None:
        """The stream has proved itself: the next failure is a new story."""
        self._failures = 0
        self._pause.reset()

    def _works(self, address: str) -> None:
        self._members.health.works(self, CALLS, detail=f"etcd at {address}")

    async def _drop(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.close()


class _Stream:
    """One connection's watch."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._call: Any = None
        self._token = ""
        self._read: asyncio.Task[Any] | None = None
        self.assembly = Assembly(0)
        self.head = 0  # the member's revision when the watch began

    async def open(self, prefix: str, after: int, timeout_s: float) -> None:
        if not await self._link.greet(timeout_s):
            raise failed(Kind.NOT_SERVING, "has no leader")
        self.assembly = Assembly(after)
        request = _create_request(prefix, after)
        self._call, self._token = await self._link.open_watch(request, timeout_s)
        response = await self._link.read(self._call, timeout_s)
        self._check(response)
        if not response.created:
            raise failed(Kind.STRANGER, "answered a watch with something else")
        self.head = response.header.revision

    async def next(self, quiet_s: float, probe_s: float, alive: Callable[[str], None]) -> Any:
        """The next response, however long it takes, as long as the member lives."""
        read = self._read = asyncio.create_task(self._link.read(self._call))
        try:
            while not (await asyncio.wait({read}, timeout=quiet_s))[0]:
                if await self._link.greet(probe_s):
                    alive(self._link.address)
            self._read = None
            response = read.result()
        finally:
            del read  # a failed task and the traceback to this frame would keep each other alive
        self._check(response)
        return response

    async def close(self) -> None:
        if self._call is not None:
            self._call.cancel()
        if self._read is not None:
            self._read.cancel()
            await asyncio.wait({self._read})
            if not self._read.cancelled():
                self._read.exception()
        await self._link.close()

    def _check(self, response: Any) -> None:
        if response.compact_revision:
            raise failed(Kind.COMPACTED, f"compacted up to {response.compact_revision}")
        if response.canceled:
            # etcd says "permission denied" for a token that it has forgotten, too.
            error = failed(Kind.TOKEN, response.cancel_reason or "the member cancelled the watch")
            self._link.reject_token(error, self._token)
            raise error


def range_of(prefix: str) -> tuple[bytes, bytes]:
    """etcd's half-open range of keys that begin with `prefix`; all keys for the empty one."""
    start = encode_key(prefix)
    stem = start.rstrip(b"\xff")
    if not stem:
        return start or b"\0", b"\0"
    return start, stem[:-1] + bytes([stem[-1] + 1])


def _create_request(prefix: str, after: int) -> Any:
    start, end = range_of(prefix)
    # From the revision before the first wanted, which is then skipped: asked to begin at exactly
    # the compacted revision, many releases leave out what was deleted at it (etcd-io/etcd issues
    # 18089 and 19179). Begun one earlier, such a watch is told that it comes too late. The price:
    # etcd takes up a watch that begins in the past at its next round, up to 100 ms later.
    create = etcdrpc.WatchCreateRequest(
        key=start, range_end=end, start_revision=max(after, 1), progress_notify=True
    )
    create.MergeFromString(_FRAGMENT_PLEASE)
    return etcdrpc.WatchRequest(create_request=create)


def _event(event: Any) -> Event:
    kv = event.kv
    value = kv.value if event.type == event.PUT else None
    return Event(decode_key(kv.key), kv.mod_revision, value, kv.lease)


def _is_fragment(response: Any) -> bool:
    known = getattr(response, "fragment", None)
    if known is not None:
        return bool(known)
    fields: Any = UnknownFieldSet(response)
    return any(field.field_number == _FRAGMENT_FIELD and field.data for field in fields)
