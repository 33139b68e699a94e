"""The text of an answer on its way to one client, an event a piece.

Granian takes all that it is given; so this looks, now and then, how far behind its client is, and
says when no more should come. Then the region's window for this answer closes (QUIC flow control),
and what waits for a client that does not read is bounded here and there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from edge_node.front.call import ClientGone

# Of an answer, sent and not acknowledged by the client: with more, the rest waits in the region.
MOST_UNREAD_BYTES = 256 * 1024
LOOK_EVERY_BYTES = 64 * 1024
# How soon it is looked again whether a client has room; then seldomer, twice the time each time.
# So whoever reads evenly is seen to have room while it still has something to read, and thousands
# that read nothing cost little. Measured: 14 µs a look.
LOOK_AGAIN_S = 0.05
LOOK_SELDOM_S = 1.0


class EventStream:
    """`send` is granian's `send_bytes`, which hands over to granian's own thread and returns what
    is done already: it need not be awaited, and a client that has gone is noticed by `Flight`.

    `acknowledged` tells how many bytes the client has got since it connected, or None.

    The client's stream ends when nothing refers to `send` any more: `close` lets go of it, whatever
    an exception's traceback still refers to. `acknowledged` must not refer to it either.

    `gone` is called where the client turns out to have gone; without it `ClientGone` is raised.
    """

    __slots__ = (
        "_acknowledged", "_before", "_event_of", "_gone", "_instead", "_look_at", "_room", "_send",
        "_timer", "sent_bytes",
    )  # fmt: skip

    def __init__(
        self,
        send: Callable[[bytes], object],
        event_of: Callable[[str], bytes],
        acknowledged: Callable[[], int | None],
        gone: Callable[[], None] | None = None,
    ) -> None:
        self._send: Callable[[bytes], object] | None = send
        self._instead: Callable[[], None] | None = None  # called for a piece, from `pass_to` on
        self._event_of = event_of
        self._acknowledged = acknowledged
        self._gone = gone
        self._before = acknowledged()
        self._look_at = LOOK_EVERY_BYTES
        self._room: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None  # for the next look, while there is none
        self.sent_bytes = 0

    def show(self, text: str) -> asyncio.Future[None] | None:
        """Send a piece. What is returned is done when the client has room for more."""
        if not text or self._send is None:
            if self._instead is not None:
                self._instead()
            return None
        event = self._event_of(text)
        try:
            self._send(event)
        except ClientGone:
            if self._gone is None:
                raise
            self._gone()
            return None
        self.sent_bytes += len(event)
        if self.sent_bytes < self._look_at:
            return None
        return self._look()

    def give(self, event: bytes) -> asyncio.Future[None] | None:
        """As `show`, of what is encoded already."""
        if self._send is None:
            return None
        try:
            self._send(event)
        except ClientGone:
            if self._gone is None:
                raise
            self._gone()
            return None
        self.sent_bytes += len(event)
        return None if self.sent_bytes < self._look_at else self._look()

    async def last(self, event: bytes) -> None:
        """What is left."""
        if self._send is not None:
            try:
                sent: Any = self._send(event)
                await sent
            except ClientGone:
                if self._gone is None:
                    raise

    def pass_to(self, instead: Callable[[], None]) -> EventStream:
        """Another one that goes on with this client; whatever is shown to this one calls `instead`.

        Whoever waits for this client to have room waits no longer.
        """
        assert self._send is not None  # it goes on
        other = EventStream(self._send, self._event_of, self._acknowledged)
        other._before, other.sent_bytes = self._before, self.sent_bytes
        other._look_at = self._look_at
        self._send, self._instead = None, instead
        self._has_room()
        return other

    def close(self) -> None:
        self._send = None
        self._look_no_more()
        if self._room is not None:
            self._room.cancel()

    def _look(self) -> asyncio.Future[None] | None:
        if self._unread() <= MOST_UNREAD_BYTES:
            self._look_at = self.sent_bytes + LOOK_EVERY_BYTES
            return None
        if self._room is None or self._room.done():
            self._look_no_more()
            loop = asyncio.get_running_loop()
            self._room = loop.create_future()
            self._timer = loop.call_later(LOOK_AGAIN_S, self._look_again, loop, LOOK_AGAIN_S)
        return self._room

    def _look_again(self, loop: asyncio.AbstractEventLoop, after_s: float) -> None:
        """The kernel tells nobody."""
        if self._unread() <= MOST_UNREAD_BYTES // 2:
            self._look_at = self.sent_bytes + LOOK_EVERY_BYTES
            self._has_room()
        else:
            after_s = min(2 * after_s, LOOK_SELDOM_S)
            self._timer = loop.call_later(after_s, self._look_again, loop, after_s)

    def _has_room(self) -> None:
        self._look_no_more()
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def _look_no_more(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _unread(self) -> int:
        """As far as can be known: 0 where it cannot."""
        now = self._acknowledged() if self._before is not None else None
        if now is None or self._before is None:
            return 0
        return self.sent_bytes - max(0, now - self._before)
