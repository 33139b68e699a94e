"""Answers that are there already: which request may use which, where they are found and kept.

In memory first, then on disk. What an answer depends on is in its key: the tenant, the model, its
whole definition, and what was asked; nothing else of a request is looked at, its headers least of
all. Past its end an answer is still given while it is asked for anew (`CachePolicy.revalidate_s`),
and when nothing else can be given (`stale`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TypeAlias

import msgspec

from edge_node.cache.exact import Entry
from edge_node.cache.fault import Fault
from edge_node.cache.figures import CacheFigures
from edge_node.cache.key import AnswerKey
from edge_node.errors import AttemptsExhausted
from edge_node.figures import Figures
from edge_node.front import respond
from edge_node.front.replies import EVENTS, JSON, Answer, Headers, encode
from edge_node.serving import EncodedReply, Serving
from topology.overlay.errors import RegionFailure
from topology.wire.chat import ChatRequest

# Asks a region for a fresh answer, in the background.
AskAnew: TypeAlias = Callable[[AnswerKey, ChatRequest, bytes], bool]

# A fresh answer that nobody could give is not asked for again before this.
ASK_AGAIN_S = 5.0
# What a region says of a request that can only fail the same way everywhere.
_BAD_REQUEST = 400

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
        self._caches: CacheFigures = figures.caches
        self.ask_anew: AskAnew = _nobody_is_asked
        self._headers = {
            (tier, stream): [*(EVENTS if stream else JSON), *self._named(tier)]
            for tier in ("memory", "disk")
            for stream in (False, True)
        }

    def repeat(self, spelling: object, now: float) -> EncodedReply | None:
        """The reply to a request that was written just like this one."""
        ready = self._serving.cache.reply(spelling, now)
        if ready is not None:
            self._figures.cache_repeats += 1
        return ready

    def check(self, spelling: object, now: float) -> None:
        """Raises `ChatError` where a request that was written just like this one has just failed,
        and must again."""
        entry = self._serving.failures.get(spelling, now)
        if entry is not None:
            self._caches.failures_told += 1
            raise entry.value.error()

    def note_failure(
        self, spelling: tuple[str, bytes], error: AttemptsExhausted, now: float
    ) -> None:
        """Remember it, if it is the request's own fault and would be so in every region. Not what
        another model said of it: the one that it names may know better."""
        last, serving = error.last, self._serving
        if error.streaming or error.stands_in or not isinstance(last, RegionFailure):
            return
        failure = last.failure
        if failure.code != "invalid" or failure.status != _BAD_REQUEST:
            return
        if failure.retryable or failure.param == "resume_tokens":
            return
        told = Fault.of(respond.chat_error(error))
        ttl_s = serving.snapshot.policy.cache.negative_ttl_s
        size, tenant = told.size_bytes, spelling[0]
        if serving.failures.put(spelling, told, size, ttl_s, now, owner=tenant) is not None:
            self._caches.failures_noted += 1

    def key(self, tenant: str, request: ChatRequest) -> AnswerKey | None:
        """What the answer depends on, or None where it may be another one each time."""
        if not request.deterministic:
            return None
        serving = self._serving
        if not serving.reuses or serving.snapshot.models[request.model].cache_ttl_s <= 0:
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
        return (tenant, request.model, serving.epoch(request.model), digest)

    def find(
        self, key: AnswerKey, spelling: object, request: ChatRequest, body: bytes, now: float
    ) -> EncodedReply | None:
        """The reply, encoded as `request` wants it; one that has just ended is asked for anew,
        with `body`."""
        serving = self._serving
        late_s = serving.snapshot.policy.cache.revalidate_s
        entry, tier = serving.cache.get(key, now, late_s), "memory"
        if entry is None or entry.expires <= now:
            newer = self._from_disk(key, now, late_s)
            if newer is not None and (entry is None or newer.expires > entry.expires):
                entry, tier = newer, "disk"
        if entry is None:
            self._figures.cache_misses += 1
            return None
        self._figures.cache_hits += 1
        if entry.expires <= now:
            if entry.asked_at + ASK_AGAIN_S <= now and self.ask_anew(key, request, body):
                entry.asked_at = now
                self._caches.revalidations += 1
            return self._late(entry, tier, request, now)
        encoded = encode(entry.value, request)
        reply: EncodedReply = (self._headers["memory", request.stream], encoded)
        serving.cache.remember(entry, spelling, reply, len(encoded))
        return reply if tier == "memory" else (self._headers[tier, request.stream], encoded)

    def stale(self, key: AnswerKey, request: ChatRequest, now: float) -> EncodedReply | None:
        """The reply although its time may be over: for whoever can be given no other. Not for a
        client that refuses what is kept (`cache_control`)."""
        serving = self._serving
        late_s = serving.snapshot.policy.cache.stale_s
        entry, tier = serving.cache.get(key, now, late_s), "memory"
        if entry is None:
            entry, tier = self._from_disk(key, now, late_s), "disk"
        return None if entry is None else self._late(entry, tier, request, now)

    def keep(self, key: AnswerKey, model: str, answer: Answer, now: float) -> None:
        """Keep a whole answer that a region has just given. Not where the model was changed since
        it was asked for: which of the two has answered is not known."""
        serving = self._serving
        spec = serving.snapshot.models.get(model)
        if spec is None or not serving.reuses or spec.cache_ttl_s <= 0:
            return
        if key[2] != serving.epoch(model):
            return
        ttl_s = spec.cache_ttl_s - answer.age_s
        serving.cache.put(key, answer, answer.size_bytes, ttl_s, now, owner=key[0])
        if serving.disk is not None:
            serving.disk.keep(key, answer, ttl_s)

    def _from_disk(self, key: AnswerKey, now: float, late_s: float) -> Entry[Answer] | None:
        """What is there, brought into memory."""
        serving = self._serving
        if serving.disk is None:
            return None
        found = serving.disk.find(key, late_s)
        if found is None:
            return None
        answer, left_s = found
        return serving.cache.put(key, answer, answer.size_bytes, left_s, now, owner=key[0])

    def _late(
        self, entry: Entry[Answer], tier: str, request: ChatRequest, now: float
    ) -> EncodedReply:
        if entry.expires > now:
            return self._headers[tier, request.stream], encode(entry.value, request)
        if tier == "memory":
            self._caches.stale_memory += 1
        else:
            self._caches.stale_disk += 1
        headers = [
            *(EVENTS if request.stream else JSON),
            *self._named("stale", "stale"),
            ("warning", '110 - "Response is Stale"'),  # RFC 7234, 5.5.1
        ]
        return headers, encode(entry.value, request)

    def _named(self, tier: str, quality: str = "cached") -> Headers:
        return [
            ("x-tradewind-served-by", "cache"),
            ("x-tradewind-edge", self._serving.edge),
            ("x-tradewind-cache", tier),
            ("x-tradewind-quality", quality),
        ]


def _nobody_is_asked(key: AnswerKey, request: ChatRequest, body: bytes) -> bool:
    return False
