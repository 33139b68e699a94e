"""Answers that are there already: which request may use which, where they are found and kept."""

from __future__ import annotations

import hashlib

import msgspec

from edge_node.figures import Figures
from edge_node.front.replies import EVENTS, JSON, Answer, Headers, encode
from edge_node.serving import EncodedReply, Serving
from topology.wire.chat import ChatRequest

_DIGEST_BYTES = 16
_pack = msgspec.msgpack.Encoder().encode


def spelling_of(tenant: str, body: bytes) -> tuple[str, bytes]:
    """Stands for the request as it was written."""
    return (tenant, hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest())


def cache_control(header: str | None) -> tuple[bool, bool]:
    """Whether the client lets us look into the cache, and keep the answer (RFC 9111, 5.2.1)."""
    if header is None:
        return True, True
    directives = {part.strip().lower() for part in header.split(",")}
    keep = "no-store" not in directives
    return keep and directives.isdisjoint(("no-cache", "max-age=0")), keep


class Reuse:
    """Of one edge worker. `now` is the event loop's clock."""

    def __init__(self, serving: Serving, figures: Figures) -> None:
        self._serving = serving
        self._figures = figures
        cached = [("x-tradewind-served-by", "cache"), ("x-tradewind-edge", serving.edge)]
        self._headers = {False: [*JSON, *cached], True: [*EVENTS, *cached]}

    def repeat(self, spelling: object, now: float) -> EncodedReply | None:
        """The reply to a request that was written just like this one."""
        ready = self._serving.cache.reply(spelling, now)
        if ready is not None:
            self._figures.cache_repeats += 1
        return ready

    def key(self, tenant: str, request: ChatRequest) -> object | None:
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

    def find(
        self, key: object, spelling: object, request: ChatRequest, now: float
    ) -> EncodedReply | None:
        """The reply, encoded as `request` wants it."""
        cache = self._serving.cache
        entry = cache.get(key, now)
        if entry is None:
            self._figures.cache_misses += 1
            return None
        self._figures.cache_hits += 1
        body = encode(entry.value, request)
        reply: tuple[Headers, bytes] = (self._headers[request.stream], body)
        cache.remember(entry, spelling, reply, len(body))
        return reply

    def keep(self, key: object, model: str, answer: Answer, now: float) -> None:
        spec = self._serving.snapshot.models.get(model)
        if spec is not None:
            self._serving.cache.put(key, answer, answer.size_bytes, spec.cache_ttl_s, now)
