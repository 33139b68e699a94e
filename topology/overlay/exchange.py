"""One request on a tunnel, and its answer as it comes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from runtime.errors import TradewindError
from topology.overlay.errors import OverlayProtocolError, RegionFailure
from topology.overlay.frames import Accept, End, Failure, Relayed, Reply, Tokens
from topology.overlay.session import ClientSession, ResetCode, reset_code

if TYPE_CHECKING:
    from topology.overlay.client import ClientConnection

# What it returns, if anything, is to be done before it is given more.
Take: TypeAlias = Callable[[Tokens], asyncio.Future[None] | None]

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
        "_refused",
        "_region",
        "_room",
        "_session",
        "_stream_id",
        "_take",
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
        self._take: Take | None = None  # of `pour`, while it waits
        self._refused: Exception | None = None  # what it raised
        self._room: asyncio.Future[None] | None = None  # what it returned

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
        return self._pop()

    async def pour(self, take: Take) -> Accept | End:
        """Give TOKENS to `take` in the very turn in which they arrive, and return what comes after.

        As `next`, for whoever need not wait between frames: no task is woken for them, which
        is most of what a token costs otherwise. Those that arrive together may be passed on as
        one. What `take` raises is raised here; the frame that it refused is lost then, and so
        are those that arrived with it. While what it returned is not done, the region is held
        back once this exchange's window is full.
        """
        while True:
            if self._refused is not None:
                refused, self._refused = self._refused, None
                raise refused
            if self._room is not None:
                room, self._room = self._room, None
                await room
            if self._frames or self._held or self._error is not None or self._fin or self._done:
                frame = self._pop() if self._frames else await self.next()
                if not isinstance(frame, Tokens):
                    return frame
                self._room = take(frame)
                continue
            self._take = take
            try:
                await self._wait()
            finally:
                self._take = None

    def cancel(self) -> None:
        """Tell the region that nobody waits any more. May be called at any time, repeatedly."""
        self._done = True
        self._held.clear()
        self._frames.clear()
        self._abandon(ResetCode.CANCELLED)
        self._wake()

    # Called by the connection

    def feed(self, data: bytes, fin: bool) -> None:
        if self._take is not None and not (fin or self._held or self._frames):
            self._pass_on(data, self._take)
            return
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

    def _pop(self) -> Accept | Tokens | End:
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
        self._take = None  # what comes now comes after what the consumer has not seen yet
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _pass_on(self, data: bytes, take: Take) -> None:
        """What arrived, to whoever takes it at once; the first other frame ends that.

        TOKENS that arrived together are passed on as one: whoever is behind catches up.
        """
        frames: Sequence[Reply]
        try:
            alone = self._session.tokens(data)
            frames = (alone,) if alone is not None else merged(self._session.receive(data))
        except OverlayProtocolError as error:
            self._break(error)
            self._wake()
            return
        for number, frame in enumerate(frames):
            if type(frame) is not Tokens:
                self._frames.extend(frames[number:])
                self._wake()
                break
            try:
                self._room = take(frame)
            except Exception as error:  # noqa: BLE001 - whatever it was, `pour` raises it
                self._refused = error
                self._wake()
                break
            if self._room is not None:
                self._frames.extend(frames[number + 1 :])
                self._wake()
                break
        self._count_taken(len(data))

    def _decode(self) -> None:
        chunk = bytes(self._held[:_DECODE_BYTES])
        del self._held[:_DECODE_BYTES]
        try:
            self._frames.extend(self._session.receive(chunk))
        except OverlayProtocolError as error:
            self._break(error)
        self._count_taken(len(chunk))

    def _count_taken(self, size: int) -> None:
        """Let the region send as much more, half a window at a time."""
        self._taken += size
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


def merged(frames: Sequence[Reply]) -> list[Reply]:
    """The same answer with TOKENS joined that carry tokens and follow one another."""
    joined: list[Reply] = []
    for frame in frames:
        last = joined[-1] if joined else None
        if (
            isinstance(frame, Tokens)
            and isinstance(last, Tokens)
            and frame.ids
            and last.ids
            and frame.position == last.position + len(last.ids)
        ):
            joined[-1] = Tokens(last.position, last.ids + frame.ids, last.text + frame.text)
        else:
            joined.append(frame)
    return joined
