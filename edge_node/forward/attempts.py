"""One request's way through the regions: try, try elsewhere, and carry on where one stopped.

Until the client has been sent something, a failure is simply tried elsewhere. After that the next
region is told which tokens the client has (`Request.resume_tokens`) and continues after them, so
that the client's stream is neither cut, nor repeated, nor reordered. A region that names no token
ids (a foreign engine behind it) cannot be continued elsewhere; its answer is begun anew while
nobody has seen any of it, and else ends with an error. The deadline that travels shrinks with
every attempt.

Which way is next: `edge_node.forward.detour`. How often: at most `Policy.attempts` that a region
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
from edge_node.forward.blame import blames_tokens, is_clients_fault
from edge_node.forward.detour import Detour
from edge_node.forward.race import Line, LineError, Race
from edge_node.forward.received import Received
from edge_node.forward.upstream import Exchange
from edge_node.forward.ways import way_name
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
        "_decision",
        "_detour",
        "_exchange",
        "_flight",
        "_left",
        "_opened",
        "_owner",
        "_pouring",
        "_received",
        "_shown",
        "candidate",
        "ids",
        "moved_at",
        "seen",
        "text",
        "waiting",
    )

    def __init__(self, owner: Forwarder, ask: Ask, decision: Decision, flight: Flight) -> None:
        self._owner = owner
        self._ask = ask
        self._decision = decision
        self._flight = flight
        self._exchange: Exchange | None = None
        self._detour: Detour | None = None  # from when one is first thought of
        self._left = ""  # the region that `leave` is about
        self._accepted = False  # by the attempt under way
        self._shown = False  # the client has been sent part of this answer
        self._opened = 0.0  # when the attempt under way began; 0: its first token has come
        self._pouring = False  # its region is waited for in `pour`
        self._received = received = Received(ask.most_tokens)
        self.candidate: Candidate | None = None
        self.ids = received.ids
        self.text = received.text
        self.waiting = False  # for a region, in `next`
        self.seen = -1  # see `progress.Stream`
        self.moved_at = 0.0

    @property
    def tried(self) -> list[str]:
        """The ways that were gone, in order, as people call them."""
        if self._detour is not None:
            return self._detour.ways.names
        return [] if self.candidate is None else [way_name(self.candidate)]

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
                    self._pouring = True
                    try:
                        frame = await exchange.pour(take)
                    finally:
                        self._pouring = False
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
            self._owner.figures.cancelled += 1
            if self._flight.cause is Cause.DEADLINE:
                self._count_lost()

    # Sending

    def _open(self) -> Exchange:
        """May raise `PathDown`; it counts as an attempt all the same."""
        now = self._owner.now()
        if self._detour is None:
            number, candidate = 1, self._first(now)
        else:
            candidate = self._detour.take()
            number = self._detour.ways.count
            self._received.goes_on()
            self._accepted = False
            self.seen = -1
        self.candidate = candidate
        self._opened = now
        self._limit_first(candidate, now)
        self._exchange = exchange = self._send(candidate, now, number)
        return exchange

    def _first(self, now: float) -> Candidate:
        if not self._decision.candidates:
            self._count_lost()
            raise Refused(self._decision, self._ask.tenant, self._ask.model)
        self._owner.budget.note(now)
        return self._decision.candidates[0]

    def _limit_first(self, candidate: Candidate, now: float) -> None:
        """Until when the first token must come, and what is done else."""
        silence_s = self._ask.silence_s
        if self._may_hedge():
            late_s = self._owner.first_tokens.late_s(
                candidate.region, candidate.rtt_ms, silence_s * HEDGE_AT_MOST
            )
            self._flight.stage(now + late_s, Cause.HEDGE)
        else:
            self._flight.stage(now + silence_s, Cause.SILENCE)

    def _send(self, candidate: Candidate, now: float, number: int) -> Exchange:
        """`number`: of the attempt, from 1."""
        ask, owner, ids = self._ask, self._owner, self.ids
        priority = ask.priority
        if ids and priority:
            priority -= 1  # an answer that has begun goes before a new one, where a queue is full
        request = Request(
            ask.request_id,
            ask.tenant,
            ask.model,
            max(1, int((self._flight.deadline - now) * 1000)),
            priority,
            number,
            ask.stream,
            tuple(ids),
        )
        figures = owner.figures
        figures.attempts += 1
        if ids:
            figures.resumed += 1
        figures.load.at(self._decision.demand_class, candidate.region).issued += 1
        return owner.upstream.open(candidate.region, request, ask.body, candidate.relay)

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
        candidate, owner = self.candidate, self._owner
        assert candidate is not None  # it has sent it
        took_s = owner.now() - self._opened
        count = self._count(candidate.region)
        count.first_tokens += 1
        count.first_token_s += took_s
        if known is None:
            owner.first_tokens.add(candidate.region, took_s)
        else:
            self._note_move(candidate, known)
        if self._detour is not None:
            self._detour.home = None
        self._opened = 0.0
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
        region = self.region
        self._owner.upstream.trust(region)
        count = self._count(region)
        count.ok += 1
        count.tokens += end.completion_tokens

    def _note(self, region: str, frame: Accept) -> None:
        self._owner.figures.region_load[region] = frame.load
        self._owner.upstream.note_queue(region, frame.queue_ms)

    # Going on elsewhere

    def _fail(self, error: AttemptError) -> None:
        """Make ready for the next attempt, or raise `AttemptsExhausted`."""
        candidate, detour = self.candidate, self._detours()
        assert candidate is not None  # it has failed
        self._owner.figures.failed_attempts += 1
        if blames_tokens(error) and self.ids:
            error = OverlayProtocolError(f"{candidate.region} refused tokens: {error.message}")
        theirs = not is_clients_fault(error)
        if theirs:
            self._count(candidate.region).failed += 1
        self._drop()
        detour.rule_out(candidate, error)
        stuck = self._shown and not self._received.resumable
        if stuck or not detour.may_go_on(error, begun=bool(self.text)):
            if theirs:
                self._count_lost()
            raise AttemptsExhausted(error, tuple(self.tried), self._shown) from error
        self._decision = detour.decision
        # What nobody has seen is not carried on from a region that lies.
        if not self._received.resumable or (
            not self._shown and isinstance(error, OverlayProtocolError)
        ):
            self._received.begin_anew()

    def _drop(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.cancel()

    def _detours(self) -> Detour:
        detour = self._detour
        if detour is None:
            assert self.candidate is not None  # it is to be left
            detour = Detour(self._owner, self._ask, self._decision, self.candidate)
            self._detour = detour
        return detour

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
            and type(self._exchange) is not Race
            and self._detours().home is None
            and self._detours().elsewhere(self.region) is not None
        )

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
        assert self.candidate is not None  # it runs there
        if self._detours().leave(self.candidate):
            self._owner.figures.moved += 1
            self._drop()

    def _stalled(self, region: str) -> None:
        """Leave it, if somebody else may go on."""
        figures, detour = self._owner.figures, self._detours()
        if self._left_race(region):
            figures.stalled += 1
            return
        detour.ways.close(region)
        going = self._received.resumable or not self._shown
        if going and detour.other() is not None:
            figures.stalled += 1
            self._fail(RegionStalled(region))

    # Hedging: see `race`. This is its judge.

    def _may_hedge(self) -> bool:
        hedged = self._detour is not None and self._detour.hedged
        return self._ask.hedge and not hedged and not self.text

    def _hedge(self) -> None:
        now, flight, detour = self._owner.now(), self._flight, self._detours()
        assert self.candidate is not None and self._exchange is not None  # it is late
        flight.stage(self._opened + self._ask.silence_s, Cause.SILENCE)
        rival = detour.other(self.candidate if self._accepted else None)
        if rival is None or flight.deadline - now < 2 * (now - self._opened):
            return
        if not self._owner.budget.spend(now):
            return
        detour.hedged = True
        detour.ways.go(rival)
        self._owner.figures.hedged += 1
        try:
            exchange = self._send(rival, now, detour.ways.count)
        except PathDown as error:
            detour.rule_out(rival, error)
            return
        first = Line(self.candidate, self._exchange, self._opened)
        self._exchange = Race(self, [first, Line(rival, exchange, now, hedge=True)])

    def line_accepted(self, line: Line, frame: Accept) -> None:
        self._note(line.candidate.region, frame)

    def line_failed(self, line: Line, error: LineError) -> None:
        self._owner.figures.failed_attempts += 1
        if not is_clients_fault(error):
            self._count(line.candidate.region).failed += 1
        self._detours().rule_out(line.candidate, error)
        self._go_by_first()

    def line_won(self, line: Line, lost: list[Line]) -> None:
        now = self._owner.now()
        for other in lost:
            self._owner.first_tokens.add(other.candidate.region, now - other.opened)
        self._owner.figures.hedges_won += line.hedge
        self.candidate, self._opened = line.candidate, line.opened
        self._exchange = line.exchange

    def _left_race(self, region: str) -> bool:
        """Whether another line goes on without those in that region."""
        exchange = self._exchange
        if type(exchange) is not Race or not exchange.drop(region):
            return False
        self._detours().ways.close(region)
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

    def _count(self, region: str) -> RegionCount:
        return self._owner.figures.load.at(self._decision.demand_class, region)

    def _count_lost(self) -> None:
        self._owner.figures.load.of(self._decision.demand_class).lost += 1
