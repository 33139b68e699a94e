"""Requests under way: their time limits, their clients' presence, and how to stop them.

One timer serves all of them. Cancelling a request's task is the one way to interrupt it,
wherever it waits; `Flight.cause` says why it was done, so that the handler can tell the client.
"""

from __future__ import annotations

import asyncio
import enum
from typing import Any, Protocol

TICK_S = 0.025  # how late a limit may strike
WATCH_AFTER_S = 0.05  # a request this old has its client's presence watched


class Cause(enum.Enum):
    """Why a request was stopped."""

    SLOW_BODY = enum.auto()  # the client took too long to send its request
    SILENCE = enum.auto()  # the region sent nothing for too long; another may be asked
    HEDGE = enum.auto()  # its first token is late: another may be asked beside it
    STALL = enum.auto()  # everything in that region stands still
    CORE = enum.auto()  # the core that has it stands still, and others of its region do not
    MOVE = enum.auto()  # the region is drained, and this answer has had its time there
    DEADLINE = enum.auto()
    DISCONNECT = enum.auto()  # the client went away
    SHUTDOWN = enum.auto()


# The request itself goes on after these. They strike it only where it waits for its region.
PASSING = frozenset((Cause.SILENCE, Cause.HEDGE, Cause.STALL, Cause.CORE, Cause.MOVE))
# After these nobody waits for the answer, unless others do: see `Keeper`.
LEAVING = frozenset((Cause.DEADLINE, Cause.DISCONNECT))


class Presence(Protocol):
    """A future that is done when the client has gone."""

    def add_done_callback(self, callback: Any) -> Any: ...

    def cancel(self) -> Any: ...


class Keeper(Protocol):
    """Whoever may want the answer although the client of its flight does not wait any more."""

    def keep(self, cause: Cause) -> bool:
        """Whether the task goes on. Then the flight has been detached."""
        ...


class Client(Protocol):
    """Whoever waits for the answer; granian's protocol object is one."""

    def client_disconnect(self) -> Any: ...


class Flight:
    """One request under way. Times are on the event loop's clock."""

    __slots__ = (
        "_client",
        "_presence",
        "_stage",
        "_staged",
        "_staged_limit",
        "cause",
        "deadline",
        "keeper",
        "limit",
        "started",
        "task",
        "wake",
    )

    def __init__(
        self, task: asyncio.Task[Any], client: Client, now: float, limit: float, stage: Cause
    ) -> None:
        self.task = task
        self.cause: Cause | None = None
        self.started = now
        self.deadline = limit
        self.limit = limit
        self._stage = self._staged = stage  # what strikes at `limit`; what would without a deadline
        self._staged_limit = limit
        self._client: Client | None = client
        self._presence: Presence | None = None
        self.keeper: Keeper | None = None
        self.wake = min(now + WATCH_AFTER_S, limit)

    def due(self, deadline: float) -> None:
        """Set the request's deadline, which ends the stage that was going on."""
        self.deadline = self.limit = self._staged_limit = deadline
        self._stage = self._staged = Cause.DEADLINE
        self._rearm()

    def move(self, deadline: float) -> None:
        """Another deadline, earlier or later, for the stage that is going on."""
        self.deadline = deadline
        if self._staged is Cause.DEADLINE:
            self._staged_limit = deadline
        self.stage(self._staged_limit, self._staged)

    def detach(self) -> None:
        """From now on the client's presence means nothing for the task."""
        self._client = None
        self._drop_presence()

    def stage(self, limit: float, cause: Cause) -> None:
        """Until further notice, stop at `limit` because of `cause`, if the deadline allows."""
        self._staged_limit, self._staged = limit, cause
        if limit < self.deadline:
            self.limit, self._stage = limit, cause
        else:
            self.limit, self._stage = self.deadline, Cause.DEADLINE
        self._rearm()

    def _rearm(self) -> None:
        if self.limit < self.wake or self._presence is not None:
            self.wake = self.limit

    def stop(self, cause: Cause) -> None:
        """Cancel the request's task, once. A cause that is final outranks one that is not."""
        keeper = self.keeper
        if keeper is not None and cause in LEAVING and not self.stopped and keeper.keep(cause):
            return
        if self.cause is None:
            self.cause = cause
            self.task.cancel()
        elif self.cause in PASSING and cause not in PASSING:
            self.cause = cause

    @property
    def stopped(self) -> bool:
        """Whether it was, for good."""
        return self.cause is not None and self.cause not in PASSING

    def carry_on(self) -> None:
        """The cancellation was handled: the request goes on."""
        self.cause = None
        # A limit that struck while another cause was on its way strikes anew.
        self.wake = min(self.wake, self.limit)
        self.task.uncancel()

    def strike(self, now: float) -> None:
        """The timer's call at or after `wake`: stop what is late, watch who waits."""
        if now >= self.limit:
            self.wake = float("inf")
            self.stop(self._stage)
            return
        self.wake = self.limit
        if self._presence is None and self._client is not None:
            self._presence = self._client.client_disconnect()
            self._presence.add_done_callback(self._gone)

    def _gone(self, presence: Any) -> None:
        # A client may have gone in the very turn in which others came to wait for its answer.
        if self._presence is not None and not presence.cancelled():
            self.stop(Cause.DISCONNECT)

    def close(self) -> None:
        self.cause = self.cause or Cause.SHUTDOWN  # whatever comes now comes too late
        self.keeper = None
        self._drop_presence()

    def _drop_presence(self) -> None:
        if self._presence is not None:
            self._presence.cancel()  # or granian keeps it for good: measured 0.8 KiB a request
            self._presence = None


class Flights:
    """All requests under way in this process."""

    def __init__(self) -> None:
        self._flights: set[Flight] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._empty: asyncio.Event | None = None

    def __len__(self) -> int:
        return len(self._flights)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def open(self, client: Client, limit_s: float, stage: Cause) -> Flight:
        """Begin the current task's flight, to be stopped after `limit_s` because of `stage`."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None  # a handler runs in a task
        now = loop.time()
        flight = Flight(task, client, now, now + limit_s, stage)
        self._flights.add(flight)
        if self._timer is None:
            self._timer = loop.call_later(TICK_S, self._sweep)
        return flight

    def close(self, flight: Flight) -> None:
        self._flights.discard(flight)
        flight.close()
        if self._empty is not None and not self._flights:
            self._empty.set()

    def stop_all(self, cause: Cause) -> None:
        for flight in list(self._flights):
            flight.stop(cause)

    async def drained(self) -> None:
        """Return once no request is under way."""
        self._empty = asyncio.Event()
        if self._flights:
            await self._empty.wait()

    def _sweep(self) -> None:
        assert self._loop is not None  # a timer runs on it
        now = self._loop.time()
        # First of all: whatever becomes of one flight, the limits of the others hold.
        self._timer = self._loop.call_later(TICK_S, self._sweep) if self._flights else None
        for flight in [f for f in self._flights if f.wake <= now]:
            flight.strike(now)
