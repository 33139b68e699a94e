"""The shell of one node's stream: one task reads, and another exists only while there is
something to write.

A thousand nodes are told of a change in the same moment, so what each of them costs counts: a
session is asked what to send before any task is made for it (docs/performance.md, propagation).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc.aio

from control_plane.discovery.errors import StreamRefused
from control_plane.discovery.session import CATCH_UP_S, Nack, Session
from runtime import logs
from runtime.clock import Clock
from topology.wire.subscription import Origin

log = logs.get("discovery")

_GONE: Any = grpc.aio.BaseError  # what gRPC raises where a call is over


class NodeStream:
    """`origin` is what to tell nodes of this replica; `pushes` and `nacks` count."""

    def __init__(
        self, session: Session, context: Any, clock: Clock, origin: Callable[[], Origin]
    ) -> None:
        self.session = session
        self.pushes = 0
        self.nacks = 0
        self._context = context
        self._clock = clock
        self._origin = origin
        self._ended = False
        self._refusal: StreamRefused | None = None
        self._reading: asyncio.Task[Any] | None = None
        self._writing: asyncio.Task[None] | None = None
        self._later: asyncio.TimerHandle | None = None

    async def run(self, requests: AsyncIterator[Any]) -> None:
        """Converse until either side has enough. Raises `StreamRefused`, or what gRPC raises."""
        self._reading = asyncio.current_task()
        self.wake()
        try:
            async for request in requests:
                self._receive(request)
                if self._ended:
                    break
                self.wake()
        except asyncio.CancelledError:
            if not self._ended:
                raise  # the node is gone
        finally:
            self._ended = True
            self._stop()
        if self._refusal is not None:
            raise self._refusal

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
            if self._reading is not None:
                self._reading.cancel()

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
        earlier = session.nack
        session.receive(request, self._clock.wall())
        if session.nack is not None and session.nack is not earlier:
            self._note_nack(session.nack)

    def _note_nack(self, nack: Nack) -> None:
        self.nacks += 1
        log.error(
            "a node refused a revision",
            node=self.session.node_id,
            revision=nack.revision,
            reason=nack.reason,
        )

    def _stop(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
        if self._later is not None:
            self._later.cancel()
