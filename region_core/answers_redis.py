"""Answers that the cores of a region share through Redis, where one is configured.

It is asked only for what this core has not got, for a few milliseconds at most, and left alone for
a while when it is slow or dead; what it says is believed only where its digest fits its name.
Nothing waits for what is written to it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Iterable
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta, Struct

from region_core import whole as wholes
from region_core.circuit import Circuit
from region_core.errors import NoRedis
from region_core.whole import Whole
from runtime import logs
from runtime.clock import Clock
from runtime.metrics import Sample

if TYPE_CHECKING:
    from redis.asyncio import Redis

log = logs.get("answers")

PREFIX = b"tradewind:answer:1:"
PUT_MAX = 256  # answers that wait to be written
VALUE_MAX_BYTES = 2**20
LONGEST_S = 10 * 365 * 86_400.0  # Redis refuses ends that no 64 bits of ms hold
SLOWEST_S = 1.0  # to connect or answer, when nobody waits for it any more


class RedisSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """A Redis that the cores of one region share. `rediss://` for TLS; user and password may be
    part of the URL. Give it `maxmemory` and `maxmemory-policy allkeys-lru`: entries have a TTL, and
    how much it holds is its own concern."""

    url: Annotated[str, Meta(pattern=r"^(redis|rediss|unix)://")]
    timeout_ms: Annotated[float, Meta(gt=0, le=1000)] = 5.0  # to answer; a request waits so long
    connections: Annotated[int, Meta(ge=1, le=64)] = 8


class RedisAnswers:
    """Of one core, on its event loop."""

    def __init__(self, settings: RedisSettings, clock: Clock) -> None:
        self._redis = _connected(settings)
        self._timeout_s = settings.timeout_ms / 1000
        self._clock = clock
        self._circuit = Circuit()
        self._told = False
        self._connections = settings.connections
        self._late: set[asyncio.Future[object]] = set()  # commands that nobody waits for any more
        self._waiting: deque[tuple[bytes, Whole]] = deque()
        self._writer: asyncio.Task[None] | None = None
        self.hits = 0
        self.misses = 0
        self.written = 0
        self.dropped = 0
        self.disbelieved = 0
        self.failures = 0

    def may(self) -> bool:
        """Whether it is worth asking now."""
        return len(self._late) < self._connections and self._circuit.may(self._clock.now())

    async def get(self, name: bytes) -> Whole | None:
        """After `may`. Never raises for what Redis does."""
        kept = await self._try(self._redis.get(PREFIX + name))
        if not isinstance(kept, bytes):
            self.misses += 1
            return None
        found = wholes.decode(name, kept)
        if found is None:
            self.disbelieved += 1
        else:
            self.hits += 1
        return found

    def put(self, name: bytes, whole: Whole) -> None:
        """Write it, soon, or not at all."""
        full = len(self._waiting) >= PUT_MAX or whole.size_bytes > VALUE_MAX_BYTES
        if full or self._circuit.open(self._clock.now()):
            self.dropped += 1
            return
        self._waiting.append((name, whole))
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())
            self._writer.add_done_callback(self._written)

    async def _write(self) -> None:
        while self._waiting:
            name, whole = self._waiting.popleft()
            left_s = min(wholes.left_s(whole, self._clock.wall()), LONGEST_S)
            left_ms = int(1000 * left_s)
            if left_ms <= 0 or not self.may():
                self.dropped += 1
                continue
            value = wholes.encode(name, whole)
            if await self._try(self._redis.set(PREFIX + name, value, px=left_ms)):
                self.written += 1
            else:
                self.dropped += 1

    def _written(self, task: asyncio.Task[None]) -> None:
        self._writer = None
        if not task.cancelled() and task.exception() is not None:
            log.error("writing to Redis failed", error=repr(task.exception()))

    def _came_late(self, task: asyncio.Future[object]) -> None:
        self._late.discard(task)
        if not task.cancelled():
            task.exception()  # it has been counted

    async def _try(self, command: Awaitable[object]) -> object:
        """What it answers; None where it does not, in time."""
        from redis.exceptions import RedisError

        task = asyncio.ensure_future(command)
        await asyncio.wait((task,), timeout=self._timeout_s)
        if not task.done():
            self._late.add(task)  # its connection may be of use to others
            task.add_done_callback(self._came_late)
            self._failed(TimeoutError())
            return None
        try:
            found = task.result()
        except (RedisError, OSError, TimeoutError) as error:
            self._failed(error)
            return None
        self._circuit.went_well()
        if self._told:
            self._told = False
            log.info("Redis answers again")
        return found

    def _failed(self, error: Exception) -> None:
        self.failures += 1
        now = self._clock.now()
        self._circuit.failed(now)
        if self._circuit.open(now) and not self._told:
            self._told = True
            log.warning("Redis is left alone for a while", error=type(error).__name__)

    async def close(self) -> None:
        left: list[asyncio.Future[Any]] = list(self._late)
        if self._writer is not None:
            left.append(self._writer)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self._redis.aclose()

    def samples(self) -> Iterable[Sample]:
        name = "tradewind_core_redis_"
        open_now = self._circuit.open(self._clock.now())
        yield Sample(name + "left_alone", "Whether it is, being slow or dead.", open_now)
        yield Sample(name + "pending", "Answers to be written.", len(self._waiting))
        counted = (
            ("hits", "Answers found in Redis.", self.hits),
            ("misses", "Answers that it had not, or not in time.", self.misses),
            ("written", "Answers written.", self.written),
            ("dropped", "Answers that were not.", self.dropped),
            ("disbelieved", "Answers that were not what their name said.", self.disbelieved),
            ("failures", "Times that it did not answer in time.", self.failures),
        )
        for what, text, value in counted:
            yield Sample(f"{name}{what}_total", text, value)


def _connected(settings: RedisSettings) -> Redis:
    """A client that connects when it is first used."""
    try:
        from redis.asyncio import BlockingConnectionPool, Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
    except ImportError as error:
        raise NoRedis() from error

    pool = BlockingConnectionPool.from_url(
        settings.url,
        max_connections=settings.connections,
        timeout=settings.timeout_ms / 1000,
        socket_timeout=SLOWEST_S,
        socket_connect_timeout=SLOWEST_S,
        retry=Retry(NoBackoff(), 0),
    )
    return Redis.from_pool(pool)
