"""The regional tier of the response cache: whole answers of this core, and those that cores of the
region share through Redis.

In front of the service: an answer that is there costs no place in the queue, so it is given
whatever the level and the load are. It goes out as any other would, tokens and all, so that
it can be continued elsewhere, and continues what another region began. What an answer depends on
is in its name: the tenant, what was asked, the model's definition, and what this core runs.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable

import msgspec
from msgspec import Struct

from region_core import whole as wholes
from region_core.answers_redis import RedisAnswers
from region_core.engine.base import FinishReason
from region_core.job import Failed, Job, Sink, Ticket, internal
from region_core.prepare import Offer
from region_core.whole import Recording, Whole
from runtime import logs
from runtime.clock import Clock
from runtime.metrics import Sample
from topology.policy import PolicySpec
from topology.resources import ModelSpec
from topology.shared_cache import SharedCache

log = logs.get("answers")

ASKING_MAX = 64  # requests that wait for Redis at once; others go on without
_NAME_BYTES = 32

_pack = msgspec.msgpack.Encoder().encode


class Over:
    """The ticket of a request that is over already."""

    def cancel(self) -> None:
        """There is nothing left to stop."""


_OVER = Over()


class Terms(Struct, frozen=True):
    """What holds for answers that are kept, from the configuration."""

    ttl_s: float = 0.0  # 0: none are
    max_bytes: int = 0
    share: float = 1.0
    epoch: bytes = b""

    @classmethod
    def of(cls, spec: ModelSpec | None, policy: PolicySpec) -> Terms:
        if spec is None or not policy.overload.protect:
            return cls()
        caches = policy.cache
        definition = msgspec.json.encode((spec, caches.epoch))
        epoch = hashlib.blake2b(definition, digest_size=16).digest()
        return cls(spec.cache_ttl_s, caches.regional_max_bytes, caches.tenant_share, epoch)


class Answers:
    """Of one core, on its event loop. `identity` stands for what runs here: weights, engine,
    precision. `load` is the wait in ms and the load, as ACCEPT says them: an answer that costs
    nothing must not look like an empty queue. `anonymous`: requests that come without a tenant's
    name share answers, too."""

    def __init__(
        self,
        identity: str,
        offer: Callable[[], Offer],
        load: Callable[[], tuple[float, float]],
        clock: Clock,
        redis: RedisAnswers | None = None,
        *,
        anonymous: bool = False,
    ) -> None:
        self._identity = identity
        self._offer = offer
        self._load = load
        self._clock = clock
        self._redis = redis
        self._anonymous = anonymous
        self._terms = Terms()
        self._cache: SharedCache[Whole] = SharedCache(0)
        self._asking: set[asyncio.Task[None]] = set()
        self.hits = 0
        self.resumed_hits = 0  # of those, answers that another region began
        self.redis_hits = 0
        self.misses = 0
        self.kept = 0

    def use(self, terms: Terms) -> None:
        """Go by these from now on."""
        self._terms = terms
        self._cache.resize(terms.max_bytes if terms.ttl_s > 0 else 0, terms.share)

    def submit(self, job: Job, sink: Sink, go_on: Callable[[Job, Sink], Ticket]) -> Ticket:
        """Give the answer, if it is there; else `go_on` makes one, which is kept."""
        name = self._name(job)
        if name is None:
            return go_on(job, sink)
        entry = self._cache.get(name, self._clock.now())
        if entry is not None and self._give(entry.value, job, sink):
            return _OVER
        self.misses += 1
        if not job.resume:
            sink = _Recorded(self, name, job.tenant, sink)
        redis = self._redis
        if redis is None or len(self._asking) >= ASKING_MAX or not redis.may():
            return go_on(job, sink)
        ticket = _Asking()
        task = asyncio.create_task(self._ask(redis, name, job, sink, go_on, ticket))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)
        return ticket

    async def _ask(
        self,
        redis: RedisAnswers,
        name: bytes,
        job: Job,
        sink: Sink,
        go_on: Callable[[Job, Sink], Ticket],
        ticket: _Asking,
    ) -> None:
        try:
            found = await redis.get(name)
        except Exception:  # whatever a client library may come to: the request goes on without
            log.exception("Redis could not be asked", request_id=job.request_id)
            found = None
        if ticket.cancelled:
            return
        given = sink.sink if isinstance(sink, _Recorded) else sink
        if found is not None:
            left_s = wholes.left_s(found, self._clock.wall())
            if left_s > 0 and self._give(found, job, given):
                self.redis_hits += 1
                self._hold(name, job.tenant, found, left_s)
                return
        try:
            ticket.next = go_on(job, sink)
        except Exception:  # a request's outermost edge
            log.exception("a request could not be taken on", request_id=job.request_id)
            given.failed(internal())

    def _give(self, whole: Whole, job: Job, sink: Sink) -> bool:
        pieces = whole.after(job.resume)
        if pieces is None:
            return False
        self.hits += 1
        self.resumed_hits += bool(job.resume)
        sink.accepted(*self._load())
        for piece in pieces:
            sink.tokens(*piece)
        age_s = max(0.0, self._clock.wall() - whole.made_s)
        sink.end(whole.finish_reason, whole.prompt_tokens, whole.completion_tokens, age_s)
        return True

    def keep(self, name: bytes, tenant: str, whole: Whole) -> None:
        """One that has just been made."""
        self.kept += 1
        self._hold(name, tenant, whole, whole.expires_s - whole.made_s)
        if self._redis is not None:
            self._redis.put(name, whole)

    def _hold(self, name: bytes, tenant: str, whole: Whole, left_s: float) -> None:
        self._cache.put(name, whole, whole.size_bytes, left_s, self._clock.now(), owner=tenant)

    def made(
        self, recording: Recording, finish: FinishReason, prompt_tokens: int, tokens: int
    ) -> Whole | None:
        return recording.whole(self._clock.wall(), self._terms.ttl_s, finish, prompt_tokens, tokens)

    def _name(self, job: Job) -> bytes | None:
        """What the answer depends on; None where it is neither looked for nor kept."""
        request, terms = job.request, self._terms
        if terms.ttl_s <= 0 or not job.reuse or not request.deterministic:
            return None
        if not job.tenant and not self._anonymous:
            return None
        asked = (
            job.tenant,
            self._identity,
            terms.epoch,
            self._offer(),
            request.model,
            request.messages,
            request.max_tokens,
            request.temperature,
            request.top_p,
            request.seed,
            request.stop,
        )
        return hashlib.blake2b(_pack(asked), digest_size=_NAME_BYTES).digest()

    async def close(self) -> None:
        for task in self._asking:
            task.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)
        if self._redis is not None:
            await self._redis.close()

    def samples(self) -> Iterable[Sample]:
        """For the core's metrics."""
        cache, name = self._cache, "tradewind_core_answers_"
        yield Sample(name + "bytes", "Held by the regional cache.", cache.used_bytes)
        yield Sample(name + "max_bytes", "Its limit.", cache.max_bytes)
        yield Sample(name + "entries", "Answers in it.", len(cache))
        counted = (
            ("hits", "Answered from the regional cache.", self.hits),
            ("resumed_hits", "Of these, answers that another region began.", self.resumed_hits),
            ("redis_hits", "Of these, answers that Redis had.", self.redis_hits),
            ("misses", "Requests whose answer might have been there.", self.misses),
            ("kept", "Answers kept.", self.kept),
            ("evicted", "Evicted for room.", cache.evicted),
            ("expired", "Dropped as too old.", cache.expired),
            ("refused", "Too large to keep.", cache.refused),
        )
        for what, text, value in counted:
            yield Sample(f"{name}{what}_total", text, value)
        if self._redis is not None:
            yield from self._redis.samples()


class _Asking:
    """The ticket of a request that waits for Redis, and then perhaps for an engine."""

    def __init__(self) -> None:
        self.cancelled = False
        self.next: Ticket | None = None

    def cancel(self) -> None:
        self.cancelled = True
        if self.next is not None:
            self.next.cancel()


class _Recorded:
    """A sink that keeps what it passes on, once that is a whole answer."""

    __slots__ = ("_name", "_owner", "_recording", "_tenant", "sink")

    def __init__(self, owner: Answers, name: bytes, tenant: str, sink: Sink) -> None:
        self._owner = owner
        self._name = name
        self._tenant = tenant
        self._recording = Recording()
        self.sink = sink

    def accepted(self, queue_ms: float, load: float) -> None:
        self.sink.accepted(queue_ms, load)

    def tokens(self, position: int, ids: tuple[int, ...], text: str) -> None:
        self._recording.add(position, ids, text)
        self.sink.tokens(position, ids, text)

    def end(
        self,
        finish_reason: FinishReason,
        prompt_tokens: int,
        completion_tokens: int,
        age_s: float | None = None,
    ) -> None:
        owner = self._owner
        self.sink.end(finish_reason, prompt_tokens, completion_tokens, age_s)
        whole = owner.made(self._recording, finish_reason, prompt_tokens, completion_tokens)
        if whole is not None:
            owner.keep(self._name, self._tenant, whole)

    def failed(self, failed: Failed) -> None:
        self.sink.failed(failed)
