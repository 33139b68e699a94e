"""POST /v1/chat/completions: from the cache, or through a region.

The order of steps is the order of cost. The key is checked before the body is read; an exact
repeat of a cached request is answered before it is parsed; a request that nobody may or can
serve is refused before anything is sent anywhere.
"""

from __future__ import annotations

import asyncio
import hashlib
from functools import partial
from typing import Any

import msgspec

from edge_node.errors import Refused
from edge_node.figures import Figures
from edge_node.forward.attempt import Ask
from edge_node.forward.attempts import Attempts
from edge_node.forward.forwarder import Forwarder
from edge_node.front import respond
from edge_node.front.backlog import acknowledged
from edge_node.front.body import read
from edge_node.front.call import Call, ClientGone
from edge_node.front.event_stream import EventStream
from edge_node.front.replies import EVENTS, JSON, Answer, Headers, encode, ending
from edge_node.inflight import Cause, Flight, Flights
from edge_node.serving import Serving
from runtime.clock import Clock
from runtime.errors import TradewindError
from topology.overlay.frames import End, Tokens
from topology.routing import Candidate
from topology.wire.chat import ChatRequest, ChunkEncoder, parse_request

# RFC 9218 urgency by tier; 3 is the default there.
URGENCY = {"vip": 1, "standard": 3, "batch": 6}

_DIGEST_BYTES = 16
_pack = msgspec.msgpack.Encoder().encode


class Chat:
    """Serves one call at a time per task; shared by all tasks of the process."""

    def __init__(
        self,
        serving: Serving,
        forwarder: Forwarder,
        flights: Flights,
        figures: Figures,
        clock: Clock,
        body_timeout_s: float,
    ) -> None:
        self._serving = serving
        self._forwarder = forwarder
        self._flights = flights
        self._figures = figures
        self._clock = clock
        self._body_timeout_s = body_timeout_s
        edge = ("x-tradewind-edge", serving.edge)
        cached = [("x-tradewind-served-by", "cache"), edge]
        self._cached_headers = {False: [*JSON, *cached], True: [*EVENTS, *cached]}

    async def serve(self, call: Call) -> None:
        self._figures.requests += 1
        flight = self._flights.open(call.client, self._body_timeout_s, Cause.SLOW_BODY)
        try:
            await self._answer(call, flight)
        except TradewindError as error:
            await self._fail(call, error)
        except asyncio.CancelledError:
            if flight.cause is None:
                raise
            if flight.cause is not Cause.DISCONNECT:
                await self._fail(call, respond.stopped(flight.cause))
        except ClientGone:
            pass  # the client has gone, and what was done for it has been given up on the way
        finally:
            self._flights.close(flight)

    async def _fail(self, call: Call, error: TradewindError) -> None:
        told = respond.chat_error(error)
        replies = self._figures.replies
        replies[told.status] = replies.get(told.status, 0) + 1
        if call.stream is not None:
            self._figures.streams_broken += 1
        await call.fail(told)

    async def _answer(self, call: Call, flight: Flight) -> None:
        serving, headers = self._serving, call.headers
        serving.require_ready()
        tenant = serving.keyring.tenant(headers.get("authorization"))
        body = await read(call.client, headers.get("content-length"), serving.body_limit_bytes)
        look, keep = _cache_control(headers.get("cache-control"))
        spelling = (tenant, hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest())
        now = self._forwarder.now()
        serving.quotas.admit(tenant, now)
        if look:
            ready = serving.cache.reply(spelling, now)
            if ready is not None:
                self._figures.cache_repeats += 1
                call.reply(200, *ready)
                return
        request = parse_request(body)
        decision = serving.choice.decide(tenant, request.model)
        if decision.refusal not in ("", "no_region"):
            raise Refused(decision, tenant, request.model)
        flight.due(flight.started + call.deadline_s(serving.snapshot.tenants[tenant]))
        key = self._cache_key(tenant, request) if keep else None
        if key is not None and look and self._from_cache(call, key, spelling, request, now):
            return
        ask = self._ask(call, tenant, request, body)
        attempts = self._forwarder.begin(ask, decision, flight)
        try:
            answer = await self._relay(call, flight, attempts, request)
        finally:
            attempts.close()
        self._figures.forwarded += 1
        if key is not None:
            self._keep(key, request.model, answer)

    def _ask(self, call: Call, tenant: str, request: ChatRequest, body: bytes) -> Ask:
        serving = self._serving
        tier = serving.snapshot.tenants[tenant].tier
        return Ask(
            call.overlay_id,
            tenant,
            request.model,
            URGENCY[tier],
            request.stream,
            body,
            serving.attempts,
            serving.silence_s,
            serving.snapshot.models[request.model].context_tokens,
            tier == "vip" and self._forwarder.hedges,
        )

    # The cache

    def _cache_key(self, tenant: str, request: ChatRequest) -> object | None:
        """What the answer depends on, or None where it may be another one each time."""
        if not request.deterministic:
            return None
        if self._serving.snapshot.models[request.model].cache_ttl_s <= 0:
            return None
        asked = (
            request.messages,
            request.max_tokens,
            request.temperature,
            request.top_p,
            request.seed,
            request.stop,
        )
        digest = hashlib.blake2b(_pack(asked), digest_size=_DIGEST_BYTES).digest()
        return (tenant, request.model, self._serving.epoch(request.model), digest)

    def _from_cache(
        self, call: Call, key: object, spelling: object, request: ChatRequest, now: float
    ) -> bool:
        cache = self._serving.cache
        entry = cache.get(key, now)
        if entry is None:
            self._figures.cache_misses += 1
            return False
        self._figures.cache_hits += 1
        body = encode(entry.value, request)
        headers = self._cached_headers[request.stream]
        cache.remember(entry, spelling, (headers, body), len(body))
        call.reply(200, headers, body)
        return True

    def _keep(self, key: object, model: str, answer: Answer) -> None:
        spec = self._serving.snapshot.models.get(model)
        if spec is not None:
            now = self._forwarder.now()
            self._serving.cache.put(key, answer, answer.size_bytes, spec.cache_ttl_s, now)

    # The regions

    async def _relay(
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
            ("x-tradewind-edge", self._serving.edge),
            ("x-tradewind-region", candidate.region),
            ("x-tradewind-path", candidate.path),
        ]


def _hold(_: str) -> None:
    """For answers that go out whole: `Attempts.text` has what came."""


def _cache_control(header: Any) -> tuple[bool, bool]:
    """Whether the client lets us look into the cache, and keep the answer (RFC 9111, 5.2.1)."""
    if header is None:
        return True, True
    directives = {part.strip().lower() for part in header.split(",")}
    keep = "no-store" not in directives
    return keep and directives.isdisjoint(("no-cache", "max-age=0")), keep
