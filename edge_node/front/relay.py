"""An answer on its way from a region to one client: as it comes, or whole."""

from __future__ import annotations

from functools import partial

from edge_node.figures import Figures
from edge_node.forward.attempts import Attempts
from edge_node.forward.forwarder import Forwarder
from edge_node.front.backlog import acknowledged
from edge_node.front.call import Call
from edge_node.front.event_stream import EventStream
from edge_node.front.replies import EVENTS, JSON, Answer, Headers, encode, ending
from edge_node.inflight import Flight
from runtime.clock import Clock
from topology.overlay.frames import End, Tokens
from topology.routing import Candidate
from topology.wire.chat import ChatRequest, ChunkEncoder


class Relay:
    """Of one edge worker, which is named in the replies."""

    def __init__(self, edge: str, forwarder: Forwarder, figures: Figures, clock: Clock) -> None:
        self._edge = edge
        self._forwarder = forwarder
        self._figures = figures
        self._clock = clock

    async def answer(
        self, call: Call, flight: Flight, attempts: Attempts, request: ChatRequest
    ) -> Answer:
        frame = await attempts.next()
        self._figures.first_token.add(self._forwarder.now() - flight.started)
        created_s = int(self._clock.wall())
        if request.stream:
            end = await self._stream(call, attempts, request, frame, created_s)
        else:
            end = frame if type(frame) is End else await attempts.pour(_hold)
        text = "".join(attempts.text)
        answer = Answer.of(call.own_id, created_s, request.model, text, end)
        if not request.stream:
            assert attempts.candidate is not None  # it has answered
            call.reply(200, self._region_headers(JSON, attempts.candidate), encode(answer, request))
        return answer

    async def _stream(
        self,
        call: Call,
        attempts: Attempts,
        request: ChatRequest,
        frame: Tokens | End,
        created_s: int,
    ) -> End:
        """Pass the answer on as it comes; its last frame is returned."""
        assert attempts.candidate is not None  # it has sent `frame`
        stream = call.begin_stream(self._region_headers(EVENTS, attempts.candidate))
        events = ChunkEncoder(call.own_id, created_s, request.model, request.include_usage)
        head = events.role()
        if type(frame) is Tokens:
            await stream.send_bytes(head + events.text(frame.text))
            head = b""
            got = partial(acknowledged, call.scope)
            shown = EventStream(stream.send_bytes, events.text, got)
            try:
                frame = await attempts.pour(shown.show)
            finally:
                shown.close()
        assert type(frame) is End
        answer = Answer.of(call.own_id, created_s, request.model, "", frame)
        tail = ending(events, request, answer.finish_reason, answer.usage)
        await stream.send_bytes(head + tail)
        return frame

    def _region_headers(self, kind: Headers, candidate: Candidate) -> Headers:
        return [
            *kind,
            ("x-tradewind-served-by", "region"),
            ("x-tradewind-edge", self._edge),
            ("x-tradewind-region", candidate.region),
            ("x-tradewind-path", candidate.path),
        ]


def _hold(_: str) -> None:
    """For answers that go out whole: `Attempts.text` has what came."""
