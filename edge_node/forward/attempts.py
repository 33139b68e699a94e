"""One request's way through the regions: try, try elsewhere, and carry on where one stopped.

Until the client has been sent something, a failure is simply tried elsewhere. After that the next
region is told which tokens the client has (`Request.resume_tokens`) and continues after them, so
that the client's stream is neither cut, nor repeated, nor reordered. A region that names no token
ids (a foreign engine behind it) cannot be continued elsewhere; its answer is begun anew while
nobody has seen any of it, and else ends with an error. The deadline that travels shrinks with
every attempt.

Which way is next: `edge_node.forward.ways`. How often: at most `Policy.attempts` that a region
failed, refused or left unanswered, the retry of a request that has no answer yet being paid from
the edge's budget; what died or stalled under a request costs nothing; all in all `MOST_WAYS`.
Why: docs/decisions/0015-one-budget.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec import Struct

from edge_node.errors import (
    AttemptError,
    AttemptsExhausted,
    Refused,
    RegionSilent,
    RegionStalled,
)
from edge_node.figures import Figures
from edge_node.forward.blame import blames_tokens, is_clients_fault, is_death
from edge_node.forward.race import Line, LineError, Race
from edge_node.forward.received import Received
from edge_node.forward.upstream import Exchange
from edge_node.forward.ways import Ways
from edge_node.inflight import PASSING, Cause, Flight
from runtime import logs
from topology.load import RegionCount
from topology.overlay.errors import OverlayProtocolError, PathDown, RegionFailure
from topology.overlay.exchange import Take
from topology.overlay.frames import Accept, End, Request, Tokens
from topology.routing import Candidate, Decision

if TYPE_CHECKING:
    from edge_node.forward.forwarder import Forwarder

log = logs.get("forward")


class Ask(Struct, frozen=True):
    """What is to be forwarded, the same for every attempt."""

    request_id: str
    tenant: str
    model: str
    priority: int
    stream: bool
    body: bytes
    attempts: int  # regions that may fail at most
    silence_s: float  # how long a region may send nothing
    most_tokens: int  # that an answer may have
    hedge: bool = False  # a second one may be sent when the first token is late


# Of the limit for a first token: later than that, a hedge does not wait.
HEDGE_AT_MOST = 0.5
FOREVER = float("inf")


class Attempts:
    """Read an answer with `next`; `text` and `ids` hold what has come so far."""

    __slots__ = (
        "_accepted",
        "_ask",
        "_coming",
        "_decision",
        "_exchange",
        "_failures",
        "_figures",
        "_flight",
        "_hedged",
        "_home",
        "_left",
        "_opened",
        "_owner",
        "_pouring",
        "_received",
        "_shown",
        "_ways",
        "candidate",
        "ids",
        "moved_at",
        "seen",
        "text",
        "waiting",
    )

    def __init__(self, owner: Forwarder, ask: Ask, decision: Decision, flight: Flight) -> None:
        self._owner = owner
        self._figures: Figures = owner.figures
        self._ask = ask
        self._decision = decision
        self._flight = flight
        self._exchange: Exchange | None = None
        self._ways = Ways()
        self._coming: Candidate | None = None  # where the next attempt goes
        self._home: Candidate | None = None  # the drained region that gave this answer
        self._left = ""  # the region that `leave` is about
        self._failures = 0  # regions that failed, refused or were silent
        self._hedged = False
        self._accepted = False  # by the attempt under way
        self._shown = False  # the client has been sent part of this answer
        self._opened = 0.0  # when the attempt under way began; 0: its first token has come
        self.candidate: Candidate | None = None
        self.waiting = False  # for a region, in `next`
        self.seen = -1  # see `progress.Stream`
        self.moved_at = 0.0
        self._pouring = False  # its region is waited for in `pour`
        self._received = Received(ask.most_tokens)
        self.ids = self._received.ids
        self.text = self._received.text

    @property
    def tried(self) -> list[str]:
        """The ways that were gone, in order, as people call them."""
        return self._ways.names

    async def pour(self, show: Callable[[str], asyncio.Future[None] | None]) -> End:
        """All that is left of the answer: its text to `show` as it comes, and its end.

        As `next`, but no task is woken for a token (`Exchange.pour`). While what `show` returned
        is not done, the answer waits for its client and not for its region.
        """

        receive = self._received.take

        def take(frame: Tokens) -> asyncio.Future[None] | None:
            room = show(frame.text) if receive(frame) else None
            if room is not None:
                self.waiting = False
                room.add_done_callback(self._has_room)
            return room

        while True:
            frame = await self.next(take)
            if type(frame) is End:
                return frame
            assert type(frame) is Tokens
            room = show(frame.text)
            if room is not None:
                await room

    def _has_room(self, _: object) -> None:
        self.waiting = self._pouring

    async def _pour(self, exchange: Exchange, take: Take) -> Accept | End:
        self._pouring = True
        try:
            return await exchange.pour(take)
        finally:
            self._pouring = False

    async def next(self, take: Take | None = None) -> Tokens | End:
        """The next piece of the answer, from whichever region can give it.

        Raises `AttemptsExhausted`, or `Refused` when no region may be asked. After `End`, do
        not call again. With `take`, what follows an attempt's first piece goes there.
        """
        while True:
            try:
                exchange = self._exchange or self._open()
                self.waiting = True
                if take is None or self._opened:
                    frame = await exchange.next()
                else:
                    frame = await self._pour(exchange, take)
                self.waiting = False
                if type(frame) is Tokens:
                    if self._take(frame):
                        return frame
                elif type(frame) is End:
                    self._finish(frame)
                    return frame
                elif type(frame) is Accept:
                    assert self.candidate is not None  # it has answered
                    self._accepted = True
                    self._note(self.candidate.region, frame)
            except (PathDown, RegionFailure, OverlayProtocolError) as error:
                self.waiting = False
                self._fail(error)
            except asyncio.CancelledError:
                self.waiting = False
                if self._flight.cause not in PASSING:
                    raise
                self._interrupted()

    def close(self) -> None:
        """Tell the region that nobody waits any more, unless the answer is whole."""
        self._owner.watch.discard(self)
        if self._exchange is not None:
            self._exchange.cancel()
            self._exchange = None
            self._figures.cancelled += 1
            if self._flight.cause is Cause.DEADLINE:
                self._count_lost()

    # Sending

    def _open(self) -> Exchange:
        candidate = self._coming or self._first()
        now = self._owner.now()
        self._coming = None
        self.candidate = candidate
        self._opened = now
        self._accepted = False
        self._received.goes_on()
        self.seen = -1
        self._flight.stage(*self._first_limit(candidate, now))
        self._exchange = self._send(candidate, now)
        return self._exchange

    def _first(self) -> Candidate:
        if not self._decision.candidates:
            self._count_lost()
            raise Refused(self._decision, self._ask.tenant, self._ask.model)
        self._owner.budget.note(self._owner.now())
        return self._decision.candidates[0]

    def _first_limit(self, candidate: Candidate, now: float) -> tuple[float, Cause]:
        """Until when the first token must come, and what is done else."""
        silence_s = self._ask.silence_s
        if not self._ask.hedge or self._hedged or self.text:
            return now + silence_s, Cause.SILENCE
        late = self._owner.first_tokens.late_s(
            candidate.region, candidate.rtt_ms, silence_s * HEDGE_AT_MOST
        )
        return now + late, Cause.HEDGE

    def _send(self, candidate: Candidate, now: float) -> Exchange:
        """May raise `PathDown`; it counts as an attempt all the same."""
        ask, ways, figures = self._ask, self._ways, self._figures
        ways.go(candidate)
        request = Request(
            ask.request_id,
            ask.tenant,
            ask.model,
            max(1, int((self._flight.deadline - now) * 1000)),
            # An answer that has begun goes before a new one of its tier, where a queue is full.
            max(0, ask.priority - 1) if self.ids else ask.priority,
            ways.count,
            ask.stream,
            tuple(self.ids),
        )
        figures.attempts += 1
        figures.resumed += bool(self.ids)
        figures.load.at(self._decision.demand_class, candidate.region).issued += 1
        return self._owner.upstream.open(candidate.region, request, ask.body, candidate.relay)

    # Receiving

    def _take(self, frame: Tokens) -> bool:
        """Whether the client is to get it; raises `OverlayProtocolError` where it cannot be."""
        if not self._opened:
            return self._received.take(frame)
        known = len(self.ids) if self.text else None
        taken = self._received.take(frame)
        if taken or frame.text:
            self._begun(known)
        return taken

    def _begun(self, known: int | None) -> None:
        """The attempt's first token is here. `known`: those before it, where it goes on."""
        assert self.candidate is not None  # it has sent it
        took_s = self._owner.now() - self._opened
        count = self._count()
        count.first_tokens += 1
        count.first_token_s += took_s
        if known is not None:
            self._note_move(self.candidate, known)
        else:
            self._owner.first_tokens.add(self.candidate.region, took_s)
        self._opened = 0.0
        self._home = None
        self._shown = self._ask.stream
        self._flight.stage(FOREVER, Cause.SILENCE)  # `Watch` sees to it from now on

    def _note_move(self, candidate: Candidate, position: int) -> None:
        """The answer goes on from there, after so many tokens."""
        log.debug(
            "a request goes on elsewhere",
            request_id=self._ask.request_id,
            region=candidate.region,
            path=candidate.path,
            position=position,
            tried=self.tried,
        )

    def _finish(self, end: End) -> None:
        self._received.check(end)
        if self._opened:
            self._begun(len(self.ids) if self.text else None)
        self._exchange = None
        self._owner.upstream.trust(self.region)
        count = self._count()
        count.ok += 1
        count.tokens += end.completion_tokens

    def _note(self, region: str, frame: Accept) -> None:
        self._figures.region_load[region] = frame.load
        self._owner.upstream.note_queue(region, frame.queue_ms)

    # Going on elsewhere

    def _fail(self, error: AttemptError) -> None:
        """Make ready for the next attempt, or raise `AttemptsExhausted`."""
        assert self.candidate is not None  # it has failed
        self._figures.failed_attempts += 1
        if blames_tokens(error) and self.ids:
            error = OverlayProtocolError(f"{self.candidate.region} refused tokens: {error.message}")
        theirs = not is_clients_fault(error)
        if theirs:
            self._count().failed += 1
        self._drop()
        self._rule_out(self.candidate, error)
        if not self._may_go_on(error):
            if theirs:
                self._count_lost()
            raise AttemptsExhausted(error, tuple(self.tried), self._shown) from error
        # What nobody has seen is not carried on from a region that lies.
        if not self._received.resumable or (
            not self._shown and isinstance(error, OverlayProtocolError)
        ):
            self._received.begin_anew()

    def _drop(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.cancel()

    def _rule_out(self, candidate: Candidate, error: AttemptError) -> None:
        if isinstance(error, PathDown):
            self._ways.doubt(candidate)
            return
        if self._ways.close(candidate.region) and not is_death(error):
            self._failures += 1

    def _may_go_on(self, error: AttemptError) -> bool:
        """Whether there is a way to go, which is then `_coming`."""
        if self._shown and not self._received.resumable:
            return False
        # A frame that breaks the protocol says nothing about the request; others may be sane.
        if not (error.retryable or isinstance(error, OverlayProtocolError)):
            return False
        if self._failures >= self._ask.attempts:
            return False
        coming = self._way()
        if coming is None:
            return False
        free = is_death(error) or bool(self.text) or self._home is not None
        if not free:
            if not self._owner.budget.spend(self._owner.now()):
                return False
            self._figures.retried += 1
        self._coming = coming
        return True

    def _way(self) -> Candidate | None:
        """The best way that is left. The world is looked at anew."""
        decision = self._owner.choice.decide(self._ask.tenant, self._ask.model)
        coming = self._ways.next(decision.candidates)
        if coming is None and self._home is not None:  # then the drained region that it came from
            coming = self._ways.next((self._home,))
        elif decision.demand_class:
            self._decision = decision
        return coming

    # Interrupted by the flight's limits, or by `Watch`

    def runs_in(self, region: str) -> bool:
        exchange = self._exchange
        if type(exchange) is Race:
            return any(line.candidate.region == region for line in exchange.lines)
        return exchange is not None and self.region == region

    def leave(self, region: str, cause: Cause) -> None:
        if self.waiting and self.runs_in(region):
            self._left = region
            self._flight.stop(cause)

    def may_move(self) -> bool:
        return (
            self.waiting
            and self._received.resumable
            and self._home is None
            and type(self._exchange) is not Race
            and self._elsewhere() is not None
        )

    def _elsewhere(self) -> Candidate | None:
        """Where this answer would go if it left its region, which nothing but a drain forbids."""
        decision = self._owner.choice.decide(self._ask.tenant, self._ask.model)
        if any(candidate.region == self.region for candidate in decision.candidates):
            return None
        return self._ways.next(decision.candidates)

    def _interrupted(self) -> None:
        cause = self._flight.cause
        self._flight.carry_on()
        if cause is Cause.HEDGE:
            self._hedge()
        elif cause is Cause.MOVE:
            self._move()
        elif cause is Cause.STALL:
            self._stalled(self._left)
        elif not self._left_race(self.region):
            self._fail(RegionSilent(self.region, self._ask.silence_s))

    def _move(self) -> None:
        coming = self._elsewhere()
        if coming is None:
            return
        self._figures.moved += 1
        self._drop()
        assert self.candidate is not None  # it runs there
        self._ways.reopen(self.candidate)  # should it ever be open again
        self._home, self._coming = self.candidate, coming

    def _stalled(self, region: str) -> None:
        """Leave it, if somebody else may go on."""
        if self._left_race(region):
            self._figures.stalled += 1
            return
        self._ways.close(region)
        decision = self._owner.choice.decide(self._ask.tenant, self._ask.model)
        going = self._received.resumable or not self._shown
        if going and self._ways.next(decision.candidates) is not None:
            self._figures.stalled += 1
            self._fail(RegionStalled(region))

    # Hedging: see `race`. This is its judge.

    def _hedge(self) -> None:
        now, flight = self._owner.now(), self._flight
        assert self.candidate is not None and self._exchange is not None  # it is late
        flight.stage(self._opened + self._ask.silence_s, Cause.SILENCE)
        decision = self._owner.choice.decide(self._ask.tenant, self._ask.model)
        besides = self.candidate if self._accepted else None
        rival = self._ways.next(decision.candidates, besides)
        if rival is None or flight.deadline - now < 2 * (now - self._opened):
            return
        if not self._owner.budget.spend(now):
            return
        self._hedged = True
        self._figures.hedged += 1
        try:
            exchange = self._send(rival, now)
        except PathDown as error:
            self._rule_out(rival, error)
            return
        first = Line(self.candidate, self._exchange, self._opened)
        self._exchange = Race(self, [first, Line(rival, exchange, now, hedge=True)])

    def line_accepted(self, line: Line, frame: Accept) -> None:
        self._note(line.candidate.region, frame)

    def line_failed(self, line: Line, error: LineError) -> None:
        self._figures.failed_attempts += 1
        if not is_clients_fault(error):
            self._count(line.candidate.region).failed += 1
        self._rule_out(line.candidate, error)
        self._go_by_first()

    def line_won(self, line: Line, lost: list[Line]) -> None:
        now = self._owner.now()
        for other in lost:
            self._owner.first_tokens.add(other.candidate.region, now - other.opened)
        self._figures.hedges_won += line.hedge
        self.candidate, self._opened = line.candidate, line.opened
        self._exchange = line.exchange

    def _left_race(self, region: str) -> bool:
        """Whether another line goes on without those in that region."""
        exchange = self._exchange
        if type(exchange) is not Race or not exchange.drop(region):
            return False
        self._ways.close(region)
        self._go_by_first()
        return True

    def _go_by_first(self) -> None:
        """Of the lines that are left in the race."""
        assert type(self._exchange) is Race
        line = self._exchange.lines[0]
        self.candidate, self._opened = line.candidate, line.opened
        self._flight.stage(line.opened + self._ask.silence_s, Cause.SILENCE)

    # For `progress`, and load reports

    @property
    def region(self) -> str:
        return self.candidate.region if self.candidate is not None else ""

    @property
    def begun(self) -> bool:
        return self._exchange is not None and not self._opened

    @property
    def pieces(self) -> int:
        return len(self.text)

    @property
    def silence_s(self) -> float:
        return self._ask.silence_s

    def _count(self, region: str = "") -> RegionCount:
        """Of the region that was asked last, unless one is named."""
        return self._figures.load.at(self._decision.demand_class, region or self.region)

    def _count_lost(self) -> None:
        self._figures.load.of(self._decision.demand_class).lost += 1
