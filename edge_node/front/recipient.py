"""One of several clients that are given the same answer, each in its form and at its pace."""

from __future__ import annotations

import asyncio
from functools import partial

from edge_node.front.backlog import acknowledged
from edge_node.front.call import Call
from edge_node.front.event_stream import EventStream
from edge_node.front.replies import Headers
from topology.wire.chat import ChatError, ChatRequest


class Recipient:
    """`over` is done once the client has been given all of the answer, or once nothing is left but
    to tell it of the error that is its result; it is cancelled where the client waits no longer."""

    __slots__ = ("call", "over", "position", "request", "shown")

    def __init__(self, call: Call, request: ChatRequest, loop: asyncio.AbstractEventLoop) -> None:
        self.call = call
        self.request = request
        self.shown: EventStream | None = None  # from when its stream has begun
        self.position = 0  # pieces of the answer that it was sent
        self.over: asyncio.Future[ChatError | None] = loop.create_future()

    @property
    def waits(self) -> bool:
        return not self.over.done()

    def begin(self, headers: Headers) -> None:
        """Begin its stream."""
        send = self.call.begin_stream(headers).send_bytes
        self.shown = EventStream(send, _unused, partial(acknowledged, self.call.scope))

    def send(self, event: bytes) -> asyncio.Future[None] | None:
        """What is returned is done when it has room for more."""
        assert self.shown is not None  # its stream has begun
        return self.shown.give(event) if event else None

    def end(self, error: ChatError | None = None) -> None:
        """It has all of it, or is to be told of the error."""
        if self.waits:
            self.over.set_result(error)
        self.let_go()

    def let_go(self) -> None:
        """Its stream ends when nothing refers to it any more."""
        if self.shown is not None:
            self.shown.close()


def _unused(_: str) -> bytes:
    raise AssertionError("its events are encoded for all of them together")
