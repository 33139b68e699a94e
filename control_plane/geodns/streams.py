"""DNS over TCP (RFC 7766): length-framed, pipelined, and bounded in every direction.

Bounds, since a stream is what a stranger can hold open: connections in all (the longest idle
one makes room for a new one), time between whole queries (bytes that trickle in do not count),
answers that the client does not read (reading stops; then the connection goes), and queries
answered before the event loop gets its turn.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Annotated, Final, cast

from msgspec import Meta, Struct

from control_plane.geodns.answers import Answerer
from control_plane.geodns.datagrams import packed_address

QUERIES_A_TURN: Final = 32
_LENGTH_BYTES: Final = 2


class StreamSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Limits of DNS over TCP."""

    connections: Annotated[int, Meta(ge=1)] = 1024
    idle_timeout_ms: Annotated[int, Meta(ge=1)] = 10_000  # without a whole query
    unread_bytes: Annotated[int, Meta(ge=1)] = 65_536  # of answers, before reading stops
    unread_timeout_ms: Annotated[int, Meta(ge=1)] = 5_000  # ...and for how long, at most


class StreamServer:
    """Answers the connections of one listening socket from `start` to `close`."""

    def __init__(self, sock: socket.socket, answerer: Answerer, settings: StreamSettings) -> None:
        self._sock = sock
        self.answerer = answerer
        self.settings = settings
        self._server: asyncio.Server | None = None
        self._open: dict[Connection, None] = {}  # the longest idle one first
        self._gone: asyncio.Event | None = None  # set once all have hung up
        self.evicted = 0  # connections that made room for another
        self.timed_out = 0

    def __len__(self) -> int:
        return len(self._open)

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self), sock=self._sock)

    async def close(self) -> None:
        """Stop accepting; let each client read what it has been answered, then hang up."""
        if self._server is not None:
            self._server.close()
        self._gone = asyncio.Event()
        for connection in list(self._open):
            connection.hang_up()
        if self._open:
            await self._gone.wait()  # no longer than `unread_timeout_ms`
        if self._server is not None:
            await self._server.wait_closed()

    def opened(self, connection: Connection) -> None:
        if len(self._open) >= self.settings.connections:
            longest_idle = next(iter(self._open))
            self._open.pop(longest_idle)
            self.evicted += 1
            longest_idle.cut()
        self._open[connection] = None

    def used(self, connection: Connection) -> None:
        if connection in self._open:
            del self._open[connection]
            self._open[connection] = None

    def closed(self, connection: Connection) -> None:
        self._open.pop(connection, None)
        if self._gone is not None and not self._open:
            self._gone.set()


class Connection(asyncio.Protocol):
    """One client."""

    def __init__(self, server: StreamServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._client = b""
        self._blocked = False  # the client does not read
        self._working = False  # a turn of queries is scheduled
        self._ended = False  # the client sends no more
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's has the methods, not the class
        self._transport = transport
        transport.set_write_buffer_limits(high=self._server.settings.unread_bytes)
        peer = transport.get_extra_info("peername")
        if not peer:  # gone before it was accepted
            transport.abort()
            return
        self._client = packed_address(peer[0])
        self._server.opened(self)
        self._arm(self._server.settings.idle_timeout_ms)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._disarm()
        self._server.closed(self)

    def eof_received(self) -> bool:
        self._ended = True
        return self._working or self._blocked  # a client may half-close behind its last query

    def pause_writing(self) -> None:
        self._blocked = True
        if self._transport is not None:
            self._transport.pause_reading()
        self._arm(self._server.settings.unread_timeout_ms)

    def resume_writing(self) -> None:
        self._blocked = False
        self._arm(self._server.settings.idle_timeout_ms)
        self._work()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._working and not self._blocked:
            self._work()

    def hang_up(self) -> None:
        """Close once what was answered has been sent, or the time for that is over."""
        self._blocked = True
        self._arm(self._server.settings.unread_timeout_ms)
        if self._transport is not None:
            self._transport.close()

    def cut(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _work(self) -> None:
        """Answer whole queries in the buffer, some of them now and the rest next turn."""
        self._working = False
        if self._transport is None or self._transport.is_closing():
            return
        buffer, at, answered = self._buffer, 0, 0
        out: list[bytes] = []
        while answered < QUERIES_A_TURN and len(buffer) - at >= _LENGTH_BYTES:
            end = at + _LENGTH_BYTES + int.from_bytes(buffer[at : at + _LENGTH_BYTES], "big")
            if end > len(buffer):
                break
            packet = bytes(buffer[at + _LENGTH_BYTES : end])
            at = end
            answered += 1
            if not self._answer(packet, out):
                self.cut()  # what is no query at all deserves no stream
                return
        del buffer[:at]
        if answered:
            self._server.used(self)
            self._arm(self._server.settings.idle_timeout_ms)
        if out:
            self._transport.write(b"".join(out))  # may call pause_writing
        self._next_turn(answered)

    def _answer(self, packet: bytes, out: list[bytes]) -> bool:
        answerer = self._server.answerer
        reply = answerer.reply(packet, self._client, stream=True)
        if reply is None:
            return False
        answerer.tally.counts[reply.slot] += 1
        size = len(reply.tail) + 2
        out += (size.to_bytes(2, "big"), packet[:2], reply.tail)
        return True

    def _next_turn(self, answered: int) -> None:
        if self._transport is None or self._blocked:
            return
        if answered == QUERIES_A_TURN:
            self._working = True
            self._transport.pause_reading()
            asyncio.get_running_loop().call_soon(self._work)
        elif self._ended:
            self._transport.close()
        else:
            self._transport.resume_reading()

    def _arm(self, timeout_ms: int) -> None:
        self._disarm()
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(timeout_ms / 1000, self._expire)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _expire(self) -> None:
        self._server.timed_out += 1
        self.cut()
