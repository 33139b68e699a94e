"""An answer on its way from a region to one client: as it comes, or whole."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

from edge_node.figures import Figures
from edge_node.forward.attempts import Attempts
from edge_node.forward.forwarder import Forwarder
from edge_node.front.backlog import acknowledged
from edge_node.front.call import QUALITY, Call, ClientGone
from edge_node.front.event_stream import EventStream
from edge_node.front.replies import EVENTS, JSON, Answer, Headers, encode, ending
from edge_node.front.work import Work
from edge_node.inflight import Cause, Flight
from runtime.clock import Clock
from topology.overlay.frames import End, Tokens
from topology.wire.chat import ChatRequest, ChunkEncoder

KINDS_MOST = 1024  # of replies, whose headers are kept


class Relay:
    """Of one edge worker, which is named in the replies."""

    def __init__(self, edge: str, forwarder: Forwarder, figures: Figures, clock: Clock) -> None:
        self._edge = edge
        self._forwarder = forwarder
        self._figures = figures
        self._clock = clock
        self._headers: dict[tuple[str, str, str, bool], Headers] = {}

    async def answer(
        self,
        call: Call,
        flight: Flight,
        attempts: Attempts,
        request: ChatRequest,
        work: Work | None = None,
    ) -> Answer:
        """The whole answer, which the client has been given, unless `work` has been shared and
        sees to it."""
        frame = await attempts.next()
        self._figures.first_token.add(self._forwarder.now() - flight.started)
        created_s = int(self._clock.wall())
        if work is not None:
            work.begin(created_s, self._region_headers)
        if request.stream and not call.handed_over:
            end = await self._stream(call, flight, attempts, request, frame, created_s, work)
        else:
            hold = _hold if work is None else work.hold
            end = frame if type(frame) is End else await attempts.pour(hold)
        text = "".join(attempts.text)
        answer = Answer.of(call.own_id, created_s, attempts.model, text, end)
        self._figures.caches.regional_hits += end.cached
        if not request.stream and not call.handed_over:
            headers = self._region_headers(JSON, attempts)
            if end.cached:
                headers = [*headers, ("x-tradewind-cache", "regional")]
            with suppress(ClientGone):  # the answer is whole, and may be of use to others
                call.reply(200, headers, encode(answer, request))
            if work is not None:
                work.call = None
        return answer

    async def _stream(
        self,
        call: Call,
        flight: Flight,
        attempts: Attempts,
        request: ChatRequest,
        frame: Tokens | End,
        created_s: int,
        work: Work | None,
    ) -> End:
        """Pass the answer on as it comes; its last frame is returned."""
        assert attempts.candidate is not None  # it has sent `frame`
        headers = self._region_headers(EVENTS, attempts)
        events = ChunkEncoder(call.own_id, created_s, attempts.model, request.include_usage)
        # What others may share is not given up because a client has gone: its work says.
        gone = None if work is None else partial(flight.stop, Cause.DISCONNECT)
        try:
            send = call.begin_stream(headers).send_bytes
        except ClientGone:
            if gone is None or work is None:
                raise
            gone()
            return frame if type(frame) is End else await attempts.pour(work.hold)
        shown = EventStream(send, events.text, partial(acknowledged, call.scope), gone)
        del send  # the client's stream ends when nothing refers to it: see `EventStream`
        if work is not None:
            work.shown = shown
        try:
            head = events.role()
            if type(frame) is Tokens:
                shown.give(head + events.text(frame.text))
                head = b""
                frame = await attempts.pour(shown.show)
            assert type(frame) is End
            if not call.handed_over:
                if work is not None:
                    work.call = None
                answer = Answer.of(call.own_id, created_s, attempts.model, "", frame)
                tail = ending(events, request, answer.finish_reason, answer.usage)
                await shown.last(head + tail)
        finally:
            shown.close()
        return frame

    def _region_headers(self, kind: Headers, attempts: Attempts) -> Headers:
        """Not to be changed: they are kept, for replies like this one."""
        candidate, quality = attempts.candidate, attempts.served
        assert candidate is not None  # it has answered
        like = (candidate.region, candidate.path, quality, kind is EVENTS)
        headers = self._headers.get(like)
        if headers is None:
            if len(self._headers) >= KINDS_MOST:
                self._headers.clear()
            headers = self._headers[like] = [
                *kind,
                ("x-tradewind-served-by", "region"),
                ("x-tradewind-edge", self._edge),
                ("x-tradewind-region", candidate.region),
                ("x-tradewind-path", candidate.path),
                (QUALITY, quality),
            ]
        return headers


def _hold(_: str) -> None:
    """For answers that go out whole: `Attempts.text` has what came."""
