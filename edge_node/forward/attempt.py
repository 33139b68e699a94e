"""The attempt under way at a request: what is sent, what is received, and what is counted.

Where it goes on after this one: `edge_node.forward.attempts`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from edge_node.admission.ladder import Quality
from edge_node.errors import Refused
from edge_node.forward.detour import Detour
from edge_node.forward.received import Received
from edge_node.forward.upstream import Exchange
from edge_node.forward.ways import way_name
from edge_node.inflight import Cause, Flight
from runtime import logs
from topology.load import RegionCount
from topology.overlay.errors import PathDown
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
    weight: float = 1.0  # of the tenant
    cursor: int = 0  # see `topology.cursor`
    cost: float = 0.0  # in tokens, as far as can be told
    reuse: bool = True  # see `topology.overlay.frames.Request`
    stand_in: bool = False  # `model` answers in place of the one that was asked for


# Of the limit for a first token: later than that, a hedge does not wait.
HEDGE_AT_MOST = 0.5
FOREVER = float("inf")


class Unsent:
    """An exchange that there is not, since the way was down.

    It does not keep `error`: the traceback of one that is raised here would lead back to it, and
    with it to the client's stream, which granian ends only when nothing refers to it any more.
    """

    def __init__(self, error: PathDown) -> None:
        self._region, self._reason = error.region, error.reason

    async def next(self) -> Accept | Tokens | End:
        raise PathDown(self._region, self._reason)

    async def pour(self, take: Take) -> Accept | End:
        raise PathDown(self._region, self._reason)

    def cancel(self) -> None:
        """There is nothing to cancel."""


class Attempt:
    """Of one request, one after another. `text` and `ids` hold what has come so far."""

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
        "_promised",
        "_received",
        "_shown",
        "candidate",
        "ids",
        "joined",
        "moved_at",
        "quality",
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
        self._promised = 0.0  # the deadline that was sent; others may wait for longer
        self._received = received = Received(ask.most_tokens)
        self.candidate: Candidate | None = None
        self.ids = received.ids
        self.text = received.text
        self.quality: Quality = "full"  # as it was let in
        self.joined = False  # of parts that more than one attempt gave
        self.waiting = False  # for a region, in `next`
        self.seen = -1  # see `progress.Stream`
        self.moved_at = 0.0

    @property
    def tried(self) -> list[str]:
        """The ways that were gone, in order, as people call them."""
        if self._detour is not None:
            return self._detour.ways.names
        return [] if self.candidate is None else [way_name(self.candidate)]

    def show(self) -> None:
        """Clients are being sent what comes, as it comes: it cannot be begun anew."""
        self._shown = True

    @property
    def model(self) -> str:
        """The one that answers."""
        return self._ask.model

    @property
    def stands_in(self) -> bool:
        """Whether that is another one than was asked for."""
        return self._ask.stand_in

    @property
    def served(self) -> Quality:
        """How good the answer is, for the client."""
        detour, candidate = self._detour, self.candidate
        if detour is None or candidate is None or self.quality != "full":
            return self.quality
        return "full" if candidate.region == detour.first else "other-region"

    # Sending

    def _open(self) -> Exchange:
        """May raise `PathDown`; it counts as an attempt all the same."""
        now = self._owner.now()
        if self._detour is None:
            if not self._decision.candidates:
                self._count_lost()
                raise Refused(self._decision, self._ask.tenant, self._ask.model)
            self._owner.budget.note(now)
            number, candidate = 1, self._decision.candidates[0]
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

    def _limit_first(self, candidate: Candidate, now: float) -> None:
        """Until when the first token must come, and what is done else."""
        ask, silence_s = self._ask, self._ask.silence_s
        hedged = self._detour is not None and self._detour.hedged
        if ask.hedge and not hedged and not self.text:
            late_s = self._owner.first_tokens.late_s(
                candidate.region, candidate.rtt_ms, silence_s * HEDGE_AT_MOST
            )
            self._flight.stage(now + late_s, Cause.HEDGE)
        else:
            self._flight.stage(now + silence_s, Cause.SILENCE)

    def _send(self, candidate: Candidate, now: float, number: int) -> Exchange:
        """`number`: of the attempt, from 1."""
        ask, owner, ids = self._ask, self._owner, self.ids
        self._promised = self._flight.deadline
        priority = ask.priority
        if ids and priority:
            priority -= 1  # an answer that has begun goes before a new one, where a queue is full
        request = Request(
            ask.request_id,
            ask.tenant,
            ask.model,
            max(1, int((self._flight.deadline - now) * 1000 - candidate.rtt_ms / 2)),
            priority,
            number,
            ask.stream,
            tuple(ids),
            ask.weight,
            ask.cursor,
            ask.reuse,
        )
        figures = owner.figures
        figures.attempts += 1
        if ids:
            figures.resumed += 1
            self.joined = True
        figures.load.at(self._decision.demand_class, candidate.region).issued += 1
        return owner.upstream.open(candidate.region, request, ask.body, candidate.relay)

    def send(self) -> None:
        """Send it now: whoever counts what is under way counts it. What fails, `next` raises."""
        try:
            self._open()
        except PathDown as error:
            self._exchange = Unsent(error)

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
        count = owner.figures.load.at(self._decision.demand_class, candidate.region)
        count.first_tokens += 1
        count.first_token_s += took_s
        if known is None:
            owner.first_tokens.add(candidate.region, took_s)
        else:
            self._note_move(candidate, known)
        if self._detour is not None:
            self._detour.home = None
        self._opened = 0.0
        if self._ask.stream:
            self._shown = True
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
        assert self.candidate is not None  # it has sent it
        region, owner = self.candidate.region, self._owner
        owner.upstream.trust(region)
        count = owner.figures.load.at(self._decision.demand_class, region)
        count.ok += 1
        count.tokens += end.completion_tokens

    def _note(self, region: str, frame: Accept) -> None:
        owner = self._owner
        owner.figures.region_load[region] = frame.load
        owner.upstream.note_queue(region, frame.queue_ms)

    def _detours(self) -> Detour:
        detour = self._detour
        if detour is None:
            assert self.candidate is not None  # it is to be left
            detour = Detour(self._owner, self._ask, self._decision, self.candidate)
            self._detour = detour
        return detour

    # For `Watch`, and load reports

    @property
    def request_id(self) -> str:
        return self._ask.request_id

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
