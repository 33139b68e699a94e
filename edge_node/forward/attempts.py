"""One request's way through the regions: try, try elsewhere, and carry on where one stopped.

No region is tried twice, and at most `Policy.attempts` are tried. Until the client has been
sent something, a failure is simply tried elsewhere. After that the next region is told which
tokens the client has (`Request.resume_tokens`) and continues after them, so that the client's
stream is neither cut, nor repeated, nor reordered. A region that names no token ids (a foreign
engine behind it) cannot be continued elsewhere; its answer is begun anew while nobody has seen
any of it, and else ends with an error. The deadline that travels shrinks with every attempt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from msgspec import Struct

from edge_node.errors import AttemptError, AttemptsExhausted, Refused, RegionSilent
from edge_node.figures import Figures
from edge_node.forward.choice import Choice
from edge_node.forward.upstream import Exchange, Upstream
from edge_node.inflight import Cause, Flight
from topology.load import RegionCount
from topology.overlay.errors import OverlayProtocolError, PathDown, RegionFailure
from topology.overlay.frames import Accept, End, Request, Tokens
from topology.routing import Candidate, Decision


class Ask(Struct, frozen=True):
    """What is to be forwarded, the same for every attempt."""

    request_id: str
    tenant: str
    model: str
    priority: int
    stream: bool
    body: bytes
    attempts: int  # regions to try at most
    silence_s: float  # how long a region may send nothing
    most_tokens: int  # that an answer may have


# An answer's text may be this long for each token it may have: far more than any vocabulary has,
# so that a region gone mad cannot fill this process.
CHARACTERS_PER_TOKEN = 256


class Forwarder:
    """Starts attempts; one for the whole edge."""

    def __init__(
        self,
        upstream: Upstream,
        choice: Choice,
        figures: Figures,
        now: Callable[[], float],
    ) -> None:
        self.upstream = upstream
        self.choice = choice
        self.figures = figures
        self.now = now  # the clock of flights: the event loop's

    def begin(self, ask: Ask, decision: Decision, flight: Flight) -> Attempts:
        return Attempts(self, ask, decision, flight)


class Attempts:
    """Read an answer with `next`; `text` and `ids` hold what has come so far."""

    __slots__ = (
        "_ask",
        "_decision",
        "_exchange",
        "_flight",
        "_opened",
        "_owner",
        "_resumable",
        "_shown",
        "_size",
        "candidate",
        "ids",
        "text",
        "tried",
    )

    def __init__(self, owner: Forwarder, ask: Ask, decision: Decision, flight: Flight) -> None:
        self._owner = owner
        self._ask = ask
        self._decision = decision
        self._flight = flight
        self._exchange: Exchange | None = None
        self._resumable = True
        self._shown = False  # the client has been sent part of this answer
        self._size = 0  # of the text, in characters
        self._opened = 0.0  # when the attempt under way began; 0: its first token has come
        self.candidate: Candidate | None = None
        self.tried: list[str] = []
        self.ids: list[int] = []
        self.text: list[str] = []

    async def next(self) -> Tokens | End:
        """The next piece of the answer, from whichever region can give it.

        Raises `AttemptsExhausted`, or `Refused` when no region may be asked. After `End`, do
        not call again.
        """
        while True:
            try:
                exchange = self._exchange or self._open()
                frame = await exchange.next()
                if type(frame) is Tokens:
                    self._take(frame)
                    return frame
                if type(frame) is End:
                    self._exchange = None
                    self._count_whole(frame)
                    return frame
                if type(frame) is Accept:
                    self._owner.figures.region_load[self.tried[-1]] = frame.load
            except (PathDown, RegionFailure, OverlayProtocolError) as error:
                self._fail(error)
            except asyncio.CancelledError:
                if self._flight.cause is not Cause.SILENCE:
                    raise
                self._flight.carry_on()
                self._fail(RegionSilent(self.tried[-1], self._ask.silence_s))

    def close(self) -> None:
        """Tell the region that nobody waits any more, unless the answer is whole."""
        if self._exchange is not None:
            self._exchange.cancel()
            self._exchange = None
            self._owner.figures.cancelled += 1
            if self._flight.cause is Cause.DEADLINE:
                self._count_lost()

    def _open(self) -> Exchange:
        candidate = self._candidate()
        ask, now = self._ask, self._owner.now()
        self.candidate = candidate
        self.tried.append(candidate.region)
        self._flight.stage(now + ask.silence_s, Cause.SILENCE)
        request = Request(
            ask.request_id,
            ask.tenant,
            ask.model,
            max(1, int((self._flight.deadline - now) * 1000)),
            ask.priority,
            len(self.tried),
            ask.stream,
            tuple(self.ids),
        )
        figures = self._owner.figures
        figures.attempts += 1
        figures.resumed += bool(self.ids)
        figures.load.at(self._decision.demand_class, candidate.region).issued += 1
        self._opened = now
        self._exchange = self._owner.upstream.open(
            candidate.region, request, ask.body, candidate.relay
        )
        return self._exchange

    def _candidate(self) -> Candidate:
        """The best region that was not tried. Later attempts look at the world anew."""
        ask = self._ask
        if self.tried:
            self._decision = self._owner.choice.decide(ask.tenant, ask.model)
        for candidate in self._decision.candidates:
            if candidate.region not in self.tried:
                return candidate
        self._count_lost()
        raise Refused(self._decision, ask.tenant, ask.model)

    def _take(self, frame: Tokens) -> None:
        if frame.position != len(self.ids):
            raise OverlayProtocolError(
                f"tokens from {frame.position} on, where {len(self.ids)} were known"
            )
        self._size += len(frame.text)
        if self._size > self._ask.most_tokens * CHARACTERS_PER_TOKEN:
            raise OverlayProtocolError(f"an answer of {self._size} characters")
        if frame.ids:
            self.ids.extend(frame.ids)
            if len(self.ids) > self._ask.most_tokens:
                raise OverlayProtocolError(f"an answer of {len(self.ids)} tokens")
        elif frame.text:
            self._resumable = False
        self.text.append(frame.text)
        self._shown = self._ask.stream
        now = self._owner.now()
        if self._opened:
            self._count_first(now)
        self._flight.stage(now + self._ask.silence_s, Cause.SILENCE)

    def _fail(self, error: AttemptError) -> None:
        """Make ready for the next attempt, or raise `AttemptsExhausted`."""
        figures = self._owner.figures
        figures.failed_attempts += 1
        theirs = not (isinstance(error, RegionFailure) and _is_clients_fault(error))
        if theirs and self.tried:
            self._count().failed += 1
        if self._exchange is not None:
            self._exchange.cancel()
            self._exchange = None
        if not self._retry_can_help(error) or not self._another():
            if theirs:
                self._count_lost()
            raise AttemptsExhausted(error, tuple(self.tried), self._shown) from error
        if not self._resumable:
            self.ids.clear()
            self.text.clear()
            self._size = 0
            self._resumable = True

    def _retry_can_help(self, error: AttemptError) -> bool:
        if self._shown and not self._resumable:
            return False
        # A frame that breaks the protocol says nothing about the request; others may be sane.
        return error.retryable or isinstance(error, OverlayProtocolError)

    def _another(self) -> bool:
        if len(self.tried) >= self._ask.attempts:
            return False
        candidates = self._owner.choice.decide(self._ask.tenant, self._ask.model).candidates
        return any(candidate.region not in self.tried for candidate in candidates)

    # For load reports

    def _count(self) -> RegionCount:
        """Of the region that was asked last."""
        return self._owner.figures.load.at(self._decision.demand_class, self.tried[-1])

    def _count_first(self, now: float) -> None:
        count = self._count()
        count.first_tokens += 1
        count.first_token_s += now - self._opened
        self._opened = 0.0

    def _count_whole(self, end: End) -> None:
        if self._opened:
            self._count_first(self._owner.now())
        count = self._count()
        count.ok += 1
        count.tokens += end.completion_tokens

    def _count_lost(self) -> None:
        self._owner.figures.load.of(self._decision.demand_class).lost += 1


def _is_clients_fault(error: RegionFailure) -> bool:
    """Whether the request itself was refused, and not for want of room."""
    return 400 <= error.failure.status < 500 and error.failure.status != 429
