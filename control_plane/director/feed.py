"""What the other replicas see: each serves a feed, and the director reads all of them.

A feed goes from replica to replica and not through the store: load reports change all the time,
and history of them is of no use to anybody.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from random import Random
from typing import Any

import grpc
import grpc.aio
import msgspec
from msgspec import Struct

from control_plane.directives.observed import Observed
from control_plane.peers import principal_of_call
from runtime import logs
from runtime.backoff import Backoff
from runtime.clock import Clock
from runtime.identity import Identity, IdentityError
from topology.wire.channel import open_channel
from topology.wire.gen.tradewind.v1 import replicas_pb2 as pb
from topology.wire.gen.tradewind.v1 import replicas_pb2_grpc

log = logs.get("feed")

ROLE = "control"
INTERVAL_MIN_S = 0.1
INTERVAL_MAX_S = 60.0
FEEDS_MAX = 32  # at once, at one replica: as many directors there are never
SILENCE_S = 5.0  # a feed that says nothing for so long is opened anew
FRESH_S = 5.0  # what was heard longer ago counts no more

_EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # the stubs leave it out

Observe = Callable[[], Observed]


class FeedService(replicas_pb2_grpc.ReplicasServicer):
    """Serves what this replica sees to the director, wherever it is."""

    def __init__(self, replica: str, observe: Observe, clock: Clock) -> None:
        self._replica = replica
        self._observe = observe
        self._clock = clock
        self._open = 0

    async def Feed(self, request: pb.FeedRequest, context: Any) -> AsyncIterator[pb.FeedPart]:  # noqa: N802
        await _authorise(context)
        interval_s = min(max(request.interval_s, INTERVAL_MIN_S), INTERVAL_MAX_S)
        if self._open >= FEEDS_MAX:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many feeds are open")
        self._open += 1
        try:
            while True:
                yield pb.FeedPart(
                    replica=self._replica,
                    now_s=self._clock.wall(),
                    observed=msgspec.msgpack.encode(self._observe()),
                )
                await asyncio.sleep(interval_s)
        finally:
            self._open -= 1


class Heard(Struct, frozen=True):
    """What another replica said last, and when by this process's monotonic clock."""

    observed: Observed
    at_s: float


class Feeds:
    """The feeds of all other replicas. `follow` whom there is; `parts` is what they said lately."""

    def __init__(self, identity: Callable[[], Identity], clock: Clock, rng: Random) -> None:
        self._identity = identity
        self._clock = clock
        self._rng = rng
        self._heard: dict[str, Heard] = {}
        self._tasks: dict[str, tuple[str, asyncio.Task[None]]] = {}

    def follow(self, replicas: Mapping[str, str]) -> None:
        """Read the feeds of `replicas` (name -> host:port) and of no others."""
        for name in [n for n, (at, _) in self._tasks.items() if replicas.get(n) != at]:
            self._tasks.pop(name)[1].cancel()
            self._heard.pop(name, None)
        for name, address in replicas.items():
            if name not in self._tasks:
                task = asyncio.create_task(self._read_forever(name, address), name=f"feed-{name}")
                self._tasks[name] = (address, task)

    async def close(self) -> None:
        tasks = [task for _, task in self._tasks.values()]
        self.follow({})
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def parts(self) -> list[Observed]:
        """What the others see, as far as it is fresh."""
        now = self._clock.now()
        return [h.observed for h in self._heard.values() if now - h.at_s <= FRESH_S]

    async def _read_forever(self, name: str, address: str) -> None:
        backoff = Backoff(0.2, 5.0, self._rng.random)
        while True:
            try:
                async with open_channel(address, self._identity()) as channel:
                    stub = replicas_pb2_grpc.ReplicasStub(channel)  # type: ignore[no-untyped-call]
                    await self._read(name, stub.Feed(pb.FeedRequest(interval_s=1.0)), backoff)
                reason = "the feed ended"
            except grpc.aio.AioRpcError as error:
                reason = f"{error.code().name}: {error.details()}"
            except (TimeoutError, msgspec.MsgspecError) as error:
                reason = str(error) or "silent"
            except Exception as error:  # the task's outermost edge: the feed is opened anew
                log.exception("reading a feed failed", replica=name)
                reason = repr(error)
            log.info("no feed from a replica", replica=name, address=address, reason=reason)
            await asyncio.sleep(backoff.next_s())

    async def _read(self, name: str, call: Any, backoff: Backoff) -> None:
        try:
            while True:
                async with asyncio.timeout(SILENCE_S):
                    part = await call.read()
                if part is _EOF:
                    return
                observed = msgspec.msgpack.decode(part.observed, type=Observed)
                self._heard[name] = Heard(observed, self._clock.now())
                backoff.reset()
        finally:
            call.cancel()


async def _authorise(context: Any) -> None:
    try:
        principal = principal_of_call(context)
    except IdentityError as error:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
        raise
    if principal.role != ROLE:
        await context.abort(
            grpc.StatusCode.PERMISSION_DENIED, f"{principal} is no control-plane replica"
        )
