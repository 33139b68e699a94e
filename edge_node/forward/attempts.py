"""One request's way through the regions: try, try elsewhere, and carry on where one stopped.

Until the client has been sent something, a failure is simply tried elsewhere. After that the next
region is told which tokens the client has (`Request.resume_tokens`) and continues after them, so
that the client's stream is neither cut, nor repeated, nor reordered. A region that names no token
ids (a foreign engine behind it) cannot be continued elsewhere; its answer is begun anew while
nobody has seen any of it, and else ends with an error. The deadline that travels shrinks with
every attempt.

Which way is next: `edge_node.forward.detour`. How often: at most `Policy.attempts` that a region
failed, refused or left unanswered, the retry of a request that has no answer yet being paid from
the edge's budget; what died or stalled under a request costs nothing; all in all `MOST_WAYS` that
gave nothing. Why: docs/decisions/0015-one-budget.md. An answer that has begun, and has no way left
to go since one died, waits for one to live again, `Forwarder.way_back_s` at most.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from edge_node.errors import AttemptError, AttemptsExhausted, RegionSilent, RegionStalled
from edge_node.forward.attempt import FOREVER, Attempt
from edge_node.forward.blame import blames_tokens, fault_of, is_clients_fault, is_deadline
from edge_node.forward.race import Line, LineError, Race
from edge_node.inflight import PASSING, Cause
from topology.overlay.errors import OverlayProtocolError, PathDown, RegionFailure
from topology.overlay.exchange import Take
from topology.overlay.frames import Accept, End, Tokens

# How often it is looked whether a way lives again: seldomer, the longer that takes.
LOOK_FIRST_S, LOOK_LAST_S = 0.05, 0.25

# Whoever waits so much longer than the region was told is worth asking it again.
LONGER_S = 0.1


class Attempts(Attempt):
    """Read an answer with `next`; `text` and `ids` hold what has come so far."""

    __slots__ = ()

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
                if not self._fail(error):
                    await self._way_back(error)
            except asyncio.CancelledError:
                self.waiting = False
                if self._flight.cause not in PASSING:
                    raise
                stranded = self._interrupted()
                if stranded is not None:
                    await self._way_back(stranded)

    def close(self) -> None:
        """Tell the region that nobody waits any more, unless the answer is whole."""
        self._owner.watch.discard(self)
        if self._exchange is not None:
            self._exchange.cancel()
            self._exchange = None
            self._owner.figures.cancelled += 1
            if self._flight.cause is Cause.DEADLINE:
                self._count_lost()

    # Going on elsewhere

    def _fail(self, error: AttemptError) -> bool:
        """Make ready for the next attempt, or raise `AttemptsExhausted`. Whether it is ready: if
        not, there is no way now, and there may be one soon."""
        candidate, detour = self.candidate, self._detours()
        assert candidate is not None  # it has failed
        if is_deadline(error) and self._flight.deadline > self._promised + LONGER_S:
            self._drop()
            detour.again(candidate)
            return True
        self._owner.figures.failed_attempts += 1
        self._tell_fault(candidate.region, error)
        if blames_tokens(error) and self.ids:
            error = OverlayProtocolError(f"{candidate.region} refused tokens: {error.message}")
        theirs = not is_clients_fault(error)
        if theirs:
            self._count(candidate.region).failed += 1
        gave = self.begun
        self._drop()
        detour.rule_out(candidate, error, gave=gave)
        stuck = self._shown and not self._received.resumable
        if stuck or not detour.may_go_on(error, begun=bool(self.text)):
            if isinstance(error, PathDown) and self.text and not stuck:
                return False
            if theirs:
                self._count_lost()
            raise self._exhausted(error) from error
        self._go_on(error)
        return True

    async def _way_back(self, error: AttemptError) -> None:
        """Wait for a way to live again, and make ready; or raise `AttemptsExhausted`."""
        owner, flight, detour = self._owner, self._flight, self._detours()
        until, look_s = owner.now() + owner.way_back_s, LOOK_FIRST_S
        flight.stage(FOREVER, Cause.SILENCE)  # no region is to blame meanwhile
        while (left_s := until - owner.now()) > 0.0:
            try:
                await asyncio.sleep(min(look_s, left_s))
            except asyncio.CancelledError:
                if flight.cause not in PASSING:
                    raise
                flight.carry_on()
            if detour.may_go_on(error, begun=True):
                owner.figures.waited_for_ways += 1
                self._go_on(error)
                return
            look_s = min(LOOK_LAST_S, 2.0 * look_s)
        self._count_lost()
        raise self._exhausted(error) from error

    def _exhausted(self, error: AttemptError) -> AttemptsExhausted:
        return AttemptsExhausted(error, tuple(self.tried), self._shown, self.stands_in)

    def _go_on(self, error: AttemptError) -> None:
        self._decision = self._detours().decision
        # What nobody has seen is not carried on from a region that lies.
        if not self._received.resumable or (
            not self._shown and isinstance(error, OverlayProtocolError)
        ):
            self._received.begin_anew()

    def _tell_fault(self, region: str, error: AttemptError) -> None:
        fault = fault_of(error)
        if fault:
            self._owner.upstream.fault(region, fault, self._ask.request_id)

    def _drop(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.cancel()

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

    def _interrupted(self) -> PathDown | None:
        """What it waits for a way to live again for, if it does."""
        cause = self._flight.cause
        self._flight.carry_on()
        if cause is Cause.HEDGE:
            self._hedge()
        elif cause is Cause.MOVE:
            self._move()
        elif cause is Cause.STALL:
            self._stalled(self._left)
        elif cause is Cause.CORE:
            return self._leave_core()
        elif not self._left_race(self.region):
            self._fail(RegionSilent(self.region, self._ask.silence_s))
        return None

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

    def _leave_core(self) -> PathDown | None:
        """Go on at another core of the region, if it can be carried on."""
        can = self._received.resumable or not self._shown
        closed = self._detours().ways.is_closed(self.region)  # it stays for want of another
        if not can or closed or type(self._exchange) is Race:
            return None
        self._owner.figures.stalled += 1
        error = PathDown(self.region, "the core that had it stands still")
        return None if self._fail(error) else error

    # Hedging: see `race`. This is its judge.

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
        self._tell_fault(line.candidate.region, error)
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
