"""Several clients that are given one answer while it comes.

Whoever keeps up is given in one round what has come since the last, encoded once for all of them.
Whoever does not keep up is given the rest from the text that all share, when it has room. So
nobody waits for anybody, and no more is held than this one answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from msgspec import Struct

from edge_node.front.call import ClientGone
from edge_node.front.recipient import Recipient
from edge_node.front.replies import EVENTS, JSON, Answer, Headers, encode, ending
from topology.wire.chat import ChatError, ChunkEncoder

SLICE = 128  # recipients served in one turn of the loop: others want to be served too
PIECES = 256  # of an answer, in one event at most
KEPT_EVENTS = 32  # encoded ones, for those who come after
SPREAD = 0.5  # of the time after which they are told to come back: not all of them at once
_GOLDEN = 0.6180339887498949  # multiples of it lie evenly between whole numbers


class Origin(Struct, frozen=True):
    """What is known of an answer once its first piece is here. `text` grows; `headers` gives those
    of a reply, from those that say its kind."""

    completion_id: str
    created_s: int
    model: str
    text: list[str]
    headers: Callable[[Headers], Headers]


class Audience:
    """Of one answer. Nothing here waits."""

    __slots__ = (
        "_again", "_due", "_encoders", "_events", "_keeping_up", "_loop", "_origin", "_rounds",
        "_tails", "_told", "_whole", "answer", "error", "recipients",
    )  # fmt: skip

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._origin: Origin | None = None
        self._encoders: dict[bool, ChunkEncoder] = {}  # with usage, and without
        self._events: dict[tuple[bool, int, int], bytes] = {}
        self._tails: dict[bool, bytes] = {}
        self._whole = b""
        self._told = 0  # of an error
        self._keeping_up: dict[Recipient, None] = {}
        self._due: list[Recipient] = []  # to be served in this round
        self._rounds = False  # a slice is about to be served
        self._again = False  # more has come since this round began
        self.recipients: dict[Recipient, None] = {}
        self.answer: Answer | None = None  # once it is whole
        self.error: ChatError | None = None  # if there will be no more of it

    @property
    def over(self) -> bool:
        """Whether no more of it will come."""
        return self.answer is not None or self.error is not None

    # The answer

    def begin(self, origin: Origin) -> None:
        """Its first piece is here."""
        self._origin = origin
        for usage in (False, True):
            self._encoders[usage] = ChunkEncoder(
                origin.completion_id, origin.created_s, origin.model, usage
            )
        self.wake()

    def wake(self) -> None:
        """More has come."""
        self._again = True
        if not self._rounds:
            self._rounds = True
            self._loop.call_soon(self._round)

    def finish(self, answer: Answer) -> None:
        """It is whole."""
        self.answer = answer
        self._end()

    def fail(self, error: ChatError) -> None:
        """There will be no more of it. Whoever has not been given all that came is so first."""
        self.error = error
        self._end()

    def _end(self) -> None:
        self._keeping_up.update((r, None) for r in self.recipients if not r.request.stream)
        self.wake()

    # Its recipients

    def add(self, recipient: Recipient) -> None:
        """Give it what has come, and what will."""
        self.recipients[recipient] = None
        if recipient.request.stream or self.over:
            self._keeping_up[recipient] = None
            self._serve(recipient)

    def remove(self, recipient: Recipient) -> None:
        """It has been served, or waits no longer."""
        recipient.let_go()
        self._keeping_up.pop(recipient, None)
        self.recipients.pop(recipient, None)

    # Rounds

    def _round(self) -> None:
        """Serve a slice of those who keep up: all of them, before the next round begins."""
        self._rounds = False
        due = self._due
        if not due:
            self._again = False
            due = self._due = list(self._keeping_up)
        for _ in range(min(SLICE, len(due))):
            self._serve(due.pop())
        if due or self._again:
            self._rounds = True
            self._loop.call_soon(self._round)

    def _serve(self, recipient: Recipient) -> None:
        """Give it what it lacks, as far as it has room."""
        if recipient.waits:
            try:
                if recipient.request.stream:
                    self._stream(recipient)
                elif self.over:
                    self._reply(recipient)
            except ClientGone:
                recipient.end()
            except Exception as error:  # noqa: BLE001 - its own task raises it
                recipient.over.set_exception(error)
        if not recipient.waits:
            self._keeping_up.pop(recipient, None)

    def _stream(self, recipient: Recipient) -> None:
        if self._origin is not None:
            if recipient.shown is None:
                recipient.begin(self._origin.headers(EVENTS))
            if not self._show(recipient, self._origin.text):
                return
        if self.answer is not None:
            recipient.send(self._tail(self.answer, recipient))
            recipient.end()
        elif self.error is not None:
            self._refuse(recipient, self.error)

    def _show(self, recipient: Recipient, text: list[str]) -> bool:
        """Whether it has all that came; else it will be given the rest when it has room."""
        usage = recipient.request.include_usage
        while recipient.position < len(text):
            end = min(len(text), recipient.position + PIECES)
            room = recipient.send(self._event(usage, recipient.position, end))
            recipient.position = end
            if room is not None:
                self._keeping_up.pop(recipient, None)
                room.add_done_callback(partial(self._has_room, recipient))
                return False
        return True

    def _has_room(self, recipient: Recipient, room: asyncio.Future[None]) -> None:
        if recipient in self.recipients and not room.cancelled():
            self._keeping_up[recipient] = None
            self._serve(recipient)

    def _reply(self, recipient: Recipient) -> None:
        if self.error is not None:
            self._refuse(recipient, self.error)
            return
        assert self._origin is not None and self.answer is not None  # it is over, and began
        self._whole = self._whole or encode(self.answer, recipient.request)
        recipient.call.reply(200, self._origin.headers(JSON), self._whole)
        recipient.end()

    def _refuse(self, recipient: Recipient, error: ChatError) -> None:
        if error.retry_after_ms is not None:
            self._told += 1
            later = 1 + SPREAD * (self._told * _GOLDEN % 1)
            error = error.after(int(error.retry_after_ms * later))
        recipient.end(error)

    # Encoding: once for all who want the same

    def _event(self, usage: bool, start: int, end: int) -> bytes:
        """Pieces of the text; with the event before all text, where they are the first."""
        event = self._events.get((usage, start, end))
        if event is None:
            assert self._origin is not None  # it has begun
            events, text = self._encoders[usage], "".join(self._origin.text[start:end])
            event = (events.role() if start == 0 else b"") + (events.text(text) if text else b"")
            if len(self._events) >= KEPT_EVENTS:
                del self._events[next(iter(self._events))]
            self._events[usage, start, end] = event
        return event

    def _tail(self, answer: Answer, recipient: Recipient) -> bytes:
        usage = recipient.request.include_usage
        tail = self._tails.get(usage)
        if tail is None:
            tail = ending(
                self._encoders[usage], recipient.request, answer.finish_reason, answer.usage
            )
            self._tails[usage] = tail
        return tail if recipient.position else self._encoders[usage].role() + tail
