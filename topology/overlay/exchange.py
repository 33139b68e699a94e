"""One request on a tunnel, and its answer as it comes."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from runtime.errors import TradewindError
from topology.overlay.errors import OverlayProtocolError, RegionFailure
from topology.overlay.frames import Accept, End, Failure, Relayed, Reply, Tokens
from topology.overlay.session import ClientSession, ResetCode, reset_code

if TYPE_CHECKING:
    from topology.overlay.client import ClientConnection

_DECODE_BYTES = 4096  # decoded at a time: frames take more memory than their bytes


class Exchange:
    """One request and its answer. Read it to `End` or an error, or `cancel` it.

    At most `window_bytes` of the answer wait here undecoded; the region cannot send more until
    the consumer has taken some (QUIC flow control, stream by stream).
    """

    __slots__ = (
        "_connection",
        "_done",
        "_error",
        "_fin",
        "_frames",
        "_granted",
        "_held",
        "_region",
        "_session",
        "_stream_id",
        "_taken",
        "_waiter",
        "_window",
    )

    def __init__(
        self, region: str, connection: ClientConnection | None, stream_id: int, window_bytes: int
    ) -> None:
        self._region = region
        self._connection = connection
        self._stream_id = stream_id
        self._session = ClientSession()
        self._frames: deque[Reply] = deque()
        self._held = bytearray()  # arrived, not decoded yet
        self._taken = 0  # bytes decoded so far
        self._granted = self._window = window_bytes
        self._fin = False
        self._done = False  # the consumer was told how it ended
        self._error: TradewindError | None = None
        self._waiter: asyncio.Future[None] | None = None

    @classmethod
    def failed(cls, region: str, error: TradewindError) -> Exchange:
        """An exchange that was refused before it began."""
        exchange = cls(region, None, -1, 0)
        exchange._error = error
        return exchange

    @property
    def held_bytes(self) -> int:
        """What arrived and was not decoded yet."""
        return len(self._held)

    async def next(self) -> Accept | Tokens | End:
        """The next frame of the answer. After `End`, do not call again.

        Raises `RegionFailure`, `PathDown` or `OverlayProtocolError`; each of them is final.
        """
        if self._done:
            raise RuntimeError("the exchange is over: its end was already reported")
        while not self._frames:
            if self._held:
                self._decode()
            elif self._error is not None:
                self._done = True
                raise self._error
            elif self._fin:
                self._finish()
            else:
                await self._wait()
        frame = self._frames.popleft()
        if isinstance(frame, Failure):
            self._end()
            raise RegionFailure(self._region, frame)
        if isinstance(frame, Relayed):
            self._end()
            raise OverlayProtocolError("RELAYED where an answer goes on")
        if isinstance(frame, End):
            self._end()
        return frame

    def cancel(self) -> None:
        """Tell the region that nobody waits any more. May be called at any time, repeatedly."""
        self._done = True
        self._held.clear()
        self._frames.clear()
        self._abandon(ResetCode.CANCELLED)
        self._wake()

    # Called by the connection

    def feed(self, data: bytes, fin: bool) -> None:
        if not self._done:
            self._held += data
        self._fin = self._fin or fin
        self._wake()

    def fail(self, error: TradewindError) -> None:
        """The stream or the path is gone; what arrived before is still delivered."""
        self._connection = None
        if self._error is None:
            self._error = error
        self._wake()

    # Inside

    async def _wait(self) -> None:
        if self._waiter is not None:
            raise RuntimeError("an exchange has one consumer")
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        if self._done:
            raise asyncio.CancelledError("the exchange was cancelled")

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _decode(self) -> None:
        chunk = bytes(self._held[:_DECODE_BYTES])
        del self._held[:_DECODE_BYTES]
        self._taken += len(chunk)
        try:
            self._frames.extend(self._session.receive(chunk))
        except OverlayProtocolError as error:
            self._break(error)
        if not self._fin and self._granted - self._taken <= self._window // 2:
            self._granted = self._taken + self._window
            if self._connection is not None:
                self._connection.grant(self._stream_id, self._granted)

    def _finish(self) -> None:
        try:
            self._session.finish()
        except OverlayProtocolError as error:
            self._break(error)
        else:  # nothing but END or ERROR makes finish() succeed, and both end `next`
            raise RuntimeError("the exchange is over: its end was already reported")

    def _break(self, error: OverlayProtocolError) -> None:
        self._held.clear()
        self._error = error
        self._abandon(reset_code(error))

    def _end(self) -> None:
        self._done = True
        self._held.clear()
        self._abandon(ResetCode.CANCELLED)

    def _abandon(self, code: ResetCode) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and not self._fin:
            connection.abandon(self._stream_id, code)
