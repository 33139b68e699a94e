"""An `Upstream` that tells the gate of every exchange: when it begins, is accepted, and ends."""

from __future__ import annotations

from collections.abc import Callable

from edge_node.admission.gate import Gate, Outcome
from edge_node.forward.upstream import Exchange, Upstream
from topology.cursor import tier_of
from topology.overlay.errors import OverlayProtocolError, PathDown, RegionFailure
from topology.overlay.exchange import Take
from topology.overlay.frames import Accept, End, Request, Tokens
from topology.routing import Views


class GatedUpstream:
    """Wraps the regions, as one edge reaches them. `now` is the clock of the gate."""

    def __init__(self, upstream: Upstream, gate: Gate, now: Callable[[], float]) -> None:
        self._upstream = upstream
        self.gate = gate
        self.now = now

    def views(self) -> Views:
        return self._upstream.views()

    def open(self, region: str, request: Request, body: bytes, relay: str = "") -> Exchange:
        exchange = self._upstream.open(region, request, body, relay)
        return _Gated(self, region, request, exchange)

    def distrust(self, region: str, why: str) -> None:
        self._upstream.distrust(region, why)

    def fault(self, region: str, why: str, request_id: str) -> None:
        self._upstream.fault(region, why, request_id)

    def note_queue(self, region: str, queue_ms: float) -> None:
        self._upstream.note_queue(region, queue_ms)

    def trust(self, region: str) -> None:
        self._upstream.trust(region)


class _Gated:
    """One exchange."""

    __slots__ = ("_exchange", "_over", "_owner", "_region", "_tier")

    def __init__(
        self, owner: GatedUpstream, region: str, request: Request, exchange: Exchange
    ) -> None:
        self._owner = owner
        self._region = region
        self._exchange = exchange
        self._tier = tier_of(request.priority)
        self._over = False
        owner.gate.sent(region, self._tier, 0.0, owner.now())

    async def next(self) -> Accept | Tokens | End:
        try:
            frame = await self._exchange.next()
        except (PathDown, RegionFailure, OverlayProtocolError) as error:
            self._failed(error)
            raise
        if type(frame) is not Tokens:
            self._seen(frame)
        return frame

    async def pour(self, take: Take) -> Accept | End:
        try:
            frame = await self._exchange.pour(take)
        except (PathDown, RegionFailure, OverlayProtocolError) as error:
            self._failed(error)
            raise
        self._seen(frame)
        return frame

    def cancel(self) -> None:
        self._exchange.cancel()
        self._end("cancelled", 0.0)

    def _seen(self, frame: Accept | Tokens | End) -> None:
        owner = self._owner
        if type(frame) is Accept:
            owner.gate.accepted(self._region, frame, owner.now())
        elif type(frame) is End:
            self._end("ok", float(frame.prompt_tokens + frame.completion_tokens))

    def _failed(self, error: PathDown | RegionFailure | OverlayProtocolError) -> None:
        outcome: Outcome = "failed"
        if isinstance(error, RegionFailure):
            failure = error.failure
            if failure.code == "overloaded":
                outcome = "refused"
            elif failure.status < 500:
                outcome = "faulty"
        self._end(outcome, 0.0)

    def _end(self, outcome: Outcome, used: float) -> None:
        if not self._over:
            self._over = True
            owner = self._owner
            owner.gate.ended(self._region, self._tier, 0.0, used, outcome, owner.now())
