"""HTTP/1.1 over pooled connections, with as little between as a population of thousands allows.

One request at a time on a connection. A client that stops waiting closes its connection, as
browsers and most libraries do; that is what tells the other side.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from typing import cast
from urllib.parse import urlsplit

_TEXT = re.compile(rb'"content":\s*"[^"]')
_CONNECT_TIMEOUT_S = 2.0


class NoConnection(Exception):
    """Not sent: too many connections are open, or nobody accepts another one."""


class Broken(Exception):
    """The connection ended before the reply did."""


class Reply:
    """A reply as it comes. Times are the machine's monotonic clock."""

    __slots__ = ("body", "done_s", "first_s", "headers", "status")

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.body = bytearray()
        self.first_s = -1.0
        self.done_s = -1.0

    def header(self, name: bytes) -> str:
        return self.headers.get(name, b"").decode("latin-1")


class Connection(asyncio.Protocol):
    """One connection to one server."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._held = bytearray()
        self._reply: Reply | None = None
        self._left = -1  # bytes of the body, or of the chunk; -1: not known yet
        self._chunked = False
        self._waiting: asyncio.Future[Reply] | None = None
        self.open = False
        self.used = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own is no subclass
        self.open = True

    @property
    def made(self) -> bool:
        """Whether there has been a connection."""
        return self._transport is not None

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        self._pool.lost()
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(Broken("the connection was closed"))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    async def ask(self, request: bytes) -> Reply:
        """Send it and return the whole reply, or raise `Broken`."""
        assert self._transport is not None
        self._reply, self._left, self._chunked = None, -1, False
        self._held.clear()
        waiting: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting = waiting
        self._transport.write(request)
        reply = await waiting
        self._waiting = None
        self.used = True
        return reply

    @property
    def answering(self) -> bool:
        """Whether a part of a reply has come."""
        return self._reply is not None or bool(self._held)

    def data_received(self, data: bytes) -> None:
        self._held += data
        if self._waiting is None or self._waiting.done():
            self.close()  # nobody asked
            return
        if self._reply is None and not self._head():
            return
        reply = self._reply
        assert reply is not None
        before = len(reply.body)
        ended = self._chunks(reply) if self._chunked else self._plain(reply)
        if reply.first_s < 0 and _TEXT.search(reply.body, max(0, before - 16)):
            reply.first_s = time.monotonic()
        if ended:
            reply.done_s = time.monotonic()
            self._waiting.set_result(reply)

    def _head(self) -> bool:
        """Read the status and the headers once they are there."""
        end = self._held.find(b"\r\n\r\n")
        if end < 0:
            return False
        lines = bytes(self._held[:end]).split(b"\r\n")
        del self._held[: end + 4]
        reply = self._reply = Reply()
        reply.status = int(lines[0].split(b" ", 2)[1])
        for line in lines[1:]:
            name, _, value = line.partition(b":")
            reply.headers[name.lower()] = value.strip()
        self._chunked = reply.headers.get(b"transfer-encoding", b"").lower() == b"chunked"
        self._left = -1 if self._chunked else int(reply.headers.get(b"content-length", b"0"))
        return True

    def _plain(self, reply: Reply) -> bool:
        reply.body += self._held
        self._held.clear()
        return len(reply.body) >= self._left

    def _chunks(self, reply: Reply) -> bool:
        """Take the chunks that are there; True after the last one (RFC 9112, 7.1)."""
        held = self._held
        while True:
            if self._left < 0:
                end = held.find(b"\r\n")
                if end < 0:
                    return False
                self._left = int(bytes(held[:end]).partition(b";")[0], 16)
                del held[: end + 2]
            if len(held) < self._left + 2:
                return False
            last = self._left == 0
            reply.body += held[: self._left]
            del held[: self._left + 2]
            self._left = -1
            if last:
                return True


class Pool:
    """Connections to the servers of one run, bounded in number over all of them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._idle: dict[tuple[str, int], deque[Connection]] = {}
        self._open = 0
        self.most = 0

    def lost(self) -> None:
        self._open -= 1

    async def ask(self, url: str, request: bytes, timeout_s: float) -> Reply:
        """One exchange within `timeout_s`. Raises `TimeoutError`, `NoConnection` or `Broken`; the
        connection is closed then, and kept for the next one otherwise."""
        parts = urlsplit(url)
        place = (parts.hostname or "127.0.0.1", parts.port or 80)
        connection: Connection | None = None
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    connection = self._kept(place) or await self._connect(place)
                    again = connection.used
                    try:
                        reply = await connection.ask(request)
                        break
                    except Broken:
                        # Closed while it was idle: nothing of the request was looked at.
                        if not again or connection.answering:
                            raise
        except BaseException:
            if connection is not None:
                connection.close()
            raise
        if reply.headers.get(b"connection", b"").lower() == b"close":
            connection.close()
        elif connection.open:
            self._idle.setdefault(place, deque()).append(connection)
        return reply

    def close(self) -> None:
        for kept in self._idle.values():
            for connection in kept:
                connection.close()
        self._idle.clear()

    def _kept(self, place: tuple[str, int]) -> Connection | None:
        kept = self._idle.get(place)
        while kept:
            connection = kept.pop()
            if connection.open:
                return connection
        return None

    async def _connect(self, place: tuple[str, int]) -> Connection:
        if self._open >= self._limit:
            raise NoConnection(f"{self._limit} connections are open")
        self._open += 1
        self.most = max(self.most, self._open)
        connection = Connection(self)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                await loop.create_connection(lambda: connection, *place)
        except BaseException as error:
            if connection.made:
                connection.close()  # `lost` will be told
            else:
                self._open -= 1
            if isinstance(error, OSError | TimeoutError):
                raise NoConnection(str(error) or "nobody accepts") from error
            raise
        return connection
