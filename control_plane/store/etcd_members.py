"""The members of one etcd cluster: whom to ask, and whom next when that fails.

The first to answer is asked until it fails; then another takes over. Reads are tried on member
after member until the time is up. A write is tried on the next member only as long as it
certainly had no effect on the last. What does no harm when it is done twice counts as a read.
"""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

from control_plane.store.errors import StoreClosed, StoreRefused, StoreUnavailable
from control_plane.store.etcd_failures import Failure, Kind, MemberFailed, failed
from control_plane.store.etcd_link import Access, Link
from control_plane.store.health import Health
from control_plane.store.settings import EtcdSettings
from runtime.backoff import Backoff

CALLS = "calls"  # the source under which calls report to `Health`

_FINAL = (Kind.REFUSED, Kind.LEASE, Kind.COMPACTED, Kind.TOO_LARGE, Kind.CLOSED)
_HOPELESS = (Kind.UNREACHED, Kind.STRANGER)
_PAUSE_MIN_S, _PAUSE_MAX_S = 0.05, 0.5


class Member:
    """One endpoint, and whether it answered last time."""

    def __init__(self, address: str, access: Access) -> None:
        self.address = address
        self._access = access
        self._link: Link | None = None
        self._answers = False
        self._greeting: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        return self._answers and self._link is not None and self._link.connected

    def open_link(self) -> Link:
        """A connection of its own, for a watch."""
        return Link(self.address, self._access)

    def greet(self, timeout_s: float) -> asyncio.Task[None]:
        """Connect and see who is there; callers at the same time share one attempt."""
        if self._greeting is None or self._greeting.done():
            self._greeting = asyncio.create_task(self._greet(timeout_s))
            self._greeting.add_done_callback(_retrieve)
        return self._greeting

    async def call(self, method: str, request: Any, timeout_s: float) -> Any:
        """Call a member that is `ready`."""
        assert self._link is not None
        try:
            return await self._link.call(method, request, timeout_s)
        except MemberFailed as error:
            self._answers = error.failure.kind in _FINAL
            raise

    async def call_watched(
        self, method: str, request: Any, timeout_s: float, probe_s: float
    ) -> Any:
        """`call`, given up early when the member stops answering anything, or when its cluster
        has a new leader and the request seems to have been lost with the old one."""
        assert self._link is not None
        link, term = self._link, self._link.term
        call = asyncio.create_task(self.call(method, request, timeout_s))
        try:
            while not (await asyncio.wait({call}, timeout=probe_s))[0]:
                if link.term > term:
                    raise failed(Kind.NO_ANSWER, "the leader changed meanwhile", undone=False)
                probe = asyncio.create_task(link.greet(probe_s))
                try:
                    await asyncio.wait({call, probe}, return_when=asyncio.FIRST_COMPLETED)
                    if not call.done():
                        await probe
                except MemberFailed as error:
                    self._answers = False
                    raise failed(Kind.NO_ANSWER, error.failure.detail, undone=False) from error
                finally:
                    await _end(probe)
            return await call
        finally:
            await _end(call)

    async def close(self) -> None:
        # gRPC goes on connecting for a closed channel until nobody refers to it any more, and a
        # failed greeting's traceback does.
        greeting, self._greeting = self._greeting, None
        if greeting is not None:
            await _end(greeting)
        link, self._link = self._link, None
        if link is not None:
            await link.close()

    async def _greet(self, timeout_s: float) -> None:
        self._answers = False
        link = self._link
        if link and not link.connected and link.tls_version != self._access.tls_version():
            self._link = None
            await link.close()
        if self._link is None:
            self._link = self.open_link()
        if not await self._link.greet(timeout_s):
            raise failed(Kind.NOT_SERVING, "has no leader: most of the cluster is unreachable")
        self._answers = True


class Members:
    """All members, asked in an order that `rng` draws."""

    def __init__(
        self, addresses: tuple[str, ...], settings: EtcdSettings, health: Health, rng: Random
    ) -> None:
        self.access = Access(settings)
        self.health = health
        self.rng = rng
        self._settings = settings
        self._probe_s = settings.probe_after_ms / 1000
        self.order = [Member(address, self.access) for address in addresses]
        rng.shuffle(self.order)
        self._ring = tuple(self.order)

    async def read(self, method: str, request: Any) -> Any:
        """Call a method that may be carried out twice, on as many members as it takes."""
        return await self._call(method, request, is_write=False)

    async def write(self, method: str, request: Any) -> Any:
        """Call a method that may change something: applied once, or not at all."""
        return await self._call(method, request, is_write=True)

    def following(self, member: Member) -> Member:
        """The next one round; all are met in as many steps as there are members."""
        return self._ring[(self._ring.index(member) + 1) % len(self._ring)]

    async def close(self) -> None:
        self.access.closed = True
        await asyncio.gather(*(member.close() for member in self.order))

    async def _call(self, method: str, request: Any, *, is_write: bool) -> Any:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settings.call_timeout_ms / 1000
        attempt_s = self._settings.attempt_timeout_ms / 1000
        pause = Backoff(_PAUSE_MIN_S, _PAUSE_MAX_S, self.rng.random)
        failures: dict[str, Failure] = {}  # of this round; whoever is in it had its turn
        reasons: dict[str, Failure] = {}  # of all rounds, for people
        while (left_s := deadline - loop.time()) > 0:
            if self.access.closed:
                raise StoreClosed("the store is closed")
            member = await self._ready_member(failures, min(attempt_s, left_s))
            _remember(failures, reasons)
            left_s = deadline - loop.time()
            if member is None:
                if all(failure.kind in _HOPELESS for failure in failures.values()):
                    break
                await asyncio.sleep(max(0.0, min(pause.next_s(), left_s)))
                failures, attempt_s = {}, attempt_s * 2
            elif left_s > 0:
                try:
                    if is_write:
                        answer = await member.call_watched(method, request, left_s, self._probe_s)
                    else:
                        answer = await member.call(method, request, min(attempt_s, left_s))
                except MemberFailed as error:
                    failures[member.address] = error.failure
                    self._give_up(error, member, is_write=is_write)
                else:
                    self._prefer(member)
                    return answer
        _remember(failures, reasons)
        raise self._unavailable(reasons)

    def _prefer(self, member: Member) -> None:
        if member is not self.order[0]:
            self.order.remove(member)
            self.order.insert(0, member)
        self.health.works(CALLS, detail=f"etcd at {member.address}")

    async def _ready_member(self, failures: dict[str, Failure], timeout_s: float) -> Member | None:
        """The first member that answers, of those that have not failed this call already."""
        candidates = [member for member in self.order if member.address not in failures]
        for member in candidates:
            if member.ready:
                return member
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        greetings = {member.greet(timeout_s): member for member in candidates}
        waiting: set[asyncio.Task[None]] = set(greetings)
        while waiting:
            done, waiting = await asyncio.wait(
                waiting,
                timeout=max(0.0, deadline - loop.time()),
                return_when=asyncio.FIRST_COMPLETED,
            )
            for greeting in done or waiting:
                failure = _failure(greeting)
                if failure is None:
                    return greetings[greeting]
                failures[greetings[greeting].address] = failure
            if not done:
                break
        return None

    def _give_up(self, error: MemberFailed, member: Member, *, is_write: bool) -> None:
        """Raise what the caller must see, unless another member may be tried."""
        failure = error.failure
        if failure.kind is Kind.CLOSED:
            raise StoreClosed("the store was closed", ambiguous=is_write) from error
        if failure.kind in (Kind.COMPACTED, Kind.TOO_LARGE) and not is_write:
            raise error
        if failure.kind is Kind.LEASE:
            raise error
        text = f"etcd at {member.address}: {failure.detail}"
        if failure.kind is Kind.REFUSED:
            self.health.refuses(text)
            raise StoreRefused(text, hint=_refusal_hint(failure.detail)) from error
        if is_write and not failure.undone:
            raise StoreUnavailable(text, ambiguous=True) from error

    def _unavailable(self, failures: dict[str, Failure]) -> StoreUnavailable:
        by_detail: dict[str, list[str]] = {}
        for address, failure in sorted(failures.items()):
            by_detail.setdefault(failure.detail, []).append(address)
        text = "; ".join(f"{', '.join(those)}: {detail}" for detail, those in by_detail.items())
        text = f"no member of etcd serves: {text or 'none answered in time'}"
        self.health.fails(CALLS, text)
        return StoreUnavailable(text, hint=_absence_hint(text))


def _remember(failures: dict[str, Failure], reasons: dict[str, Failure]) -> None:
    """When the time is up, the last round says little; keep what was known before it."""
    for address, failure in failures.items():
        if address not in reasons or failure.kind is not Kind.NO_ANSWER:
            reasons[address] = failure


def _absence_hint(text: str) -> str:
    if "handshake" in text or "erification" in text:
        return "check `ca`, `certificate` and `key`, and the host names in etcd's certificate"
    return "see that etcd runs and can be reached; watches go on by themselves when it does"


def _refusal_hint(detail: str) -> str:
    if "database space exceeded" in detail:
        return "etcd's quota is full: compact, defragment and disarm the alarm (`etcdctl alarm`)"
    return "check `user` and `password_file`, and the user's role in etcd"


def _failure(greeting: asyncio.Task[None]) -> Failure | None:
    """Why nobody was met, if so."""
    if not greeting.done():
        return Failure(Kind.NO_ANSWER, "no answer in time", undone=True)
    if greeting.cancelled():
        return Failure(Kind.CLOSED, "the store is closed", undone=True)
    error = greeting.exception()  # not raised, which would tie the two into a cycle
    if error is None:
        return None
    if isinstance(error, MemberFailed):
        return error.failure
    raise error


def _retrieve(task: asyncio.Task[None]) -> None:
    """An attempt that nobody waits for any more has failed: that is no news."""
    if not task.cancelled():
        task.exception()


async def _end(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait({task})
    _retrieve(task)
