"""The shell of one node's stream: one task reads, another exists only while there is something to
write, and gRPC's own waits for the end.

A thousand nodes are told of a change in the same moment, so what each of them costs counts: a
session is asked what to send before any task is made for it (docs/performance.md, propagation).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc.aio

from control_plane.admission import Admission
from control_plane.discovery.errors import StreamRefused, TooMany
from control_plane.discovery.session import CATCH_UP_S, Session
from runtime import logs
from runtime.clock import Clock
from topology.wire.subscription import Origin

log = logs.get("discovery")

_GONE: Any = grpc.aio.BaseError  # what gRPC raises where a call is over


class NodeStream:
    """`origin` is what to tell nodes of this replica, `allowance` how often the node may ask.
    `pushes` and `nacks` count."""

    def __init__(
        self,
        session: Session,
        context: Any,
        clock: Clock,
        origin: Callable[[], Origin],
        allowance: Admission,
    ) -> None:
        self.session = session
        self.pushes = 0
        self.nacks = 0
        self._context = context
        self._clock = clock
        self._origin = origin
        self._allowance = allowance
        self._ended = False
        self._refusal: StreamRefused | None = None
        self._over: asyncio.Future[None] | None = None
        self._reading: asyncio.Task[None] | None = None
        self._writing: asyncio.Task[None] | None = None
        self._later: asyncio.TimerHandle | None = None

    async def run(self, requests: AsyncIterator[Any]) -> None:
        """Converse until either side has enough. Raises `StreamRefused`. Then `drop` it."""
        self._over = asyncio.get_running_loop().create_future()
        self._reading = asyncio.create_task(self._read(requests))
        self.wake()
        await self._over
        if self._refusal is not None:
            raise self._refusal

    async def gone(self) -> None:
        """Return when the peer has taken the end of the stream. One that reads nothing takes it
        when its connection ends, and until then gRPC keeps what was written for it."""
        if self._reading is not None:
            await asyncio.wait({self._reading})

    def drop(self) -> None:
        """Let go of everything."""
        self._ended = True
        for work in (self._reading, self._writing, self._later):
            if work is not None:
                work.cancel()

    def wake(self) -> None:
        """Something was received or published: send what there is to send."""
        if self._ended or self._writing is not None:
            return  # whoever writes asks again when that is done
        response = self._next()
        if response is not None:
            self._writing = asyncio.create_task(self._write(response))

    def end(self, refusal: StreamRefused | None) -> None:
        """End the stream, with a word for the node."""
        if not self._ended:
            self._ended = True
            self._refusal = refusal
            if self._over is not None and not self._over.done():
                self._over.set_result(None)

    async def _read(self, requests: AsyncIterator[Any]) -> None:
        try:
            async for request in requests:
                if not self._ended:  # what comes after its end is passed over
                    self._receive(request)
                    self.wake()
            self.end(None)
        except StreamRefused as refusal:
            self.end(refusal)
            await self._pass_over(requests)
        except _GONE:
            self.end(None)
        except Exception:  # the task's outermost edge: one node's trouble is its own
            log.exception("reading from a node failed", node=self.session.node_id)
            self.end(None)

    async def _pass_over(self, requests: AsyncIterator[Any]) -> None:
        with contextlib.suppress(_GONE):
            async for _ in requests:
                pass

    def _next(self) -> bytes | None:
        response = self.session.next_response(self._origin(), self._clock.now())
        if response is None and self._later is None and self.session.waits_for_catch_up:
            loop = asyncio.get_running_loop()
            self._later = loop.call_later(CATCH_UP_S, self._look_again)
        return response

    def _look_again(self) -> None:
        self._later = None
        self.wake()

    async def _write(self, response: bytes | None) -> None:
        try:
            while response is not None and not self._ended:
                self.pushes += 1
                await self._context.write(response)
                response = self._next()
        except _GONE:
            self.end(None)
        except Exception:  # the task's outermost edge: one node's trouble is its own
            log.exception("writing to a node failed", node=self.session.node_id)
            self.end(None)
        finally:
            self._writing = None

    def _receive(self, request: Any) -> None:
        session = self.session
        if self._allowance.reserve(self._clock.now()) is None:
            raise TooMany("too many requests on one stream", hint="answer each response once")
        earlier, earlier_directive = session.nack, session.directive_nack
        session.receive(request, self._clock.wall())
        nack, refused = session.nack, session.directive_nack
        node = session.node_id
        if nack is not None and nack is not earlier:
            self.nacks += 1
            log.error("a node refused a revision", node=node, number=nack.revision, why=nack.reason)
        if refused is not None and refused is not earlier_directive:
            self.nacks += 1
            # There is another one each second, and what is wrong with it is mostly the same.
            if earlier_directive is None or earlier_directive.reason != refused.reason:
                number = refused.version.number
                log.error(
                    "a node refused a directive", node=node, number=number, why=refused.reason
                )
