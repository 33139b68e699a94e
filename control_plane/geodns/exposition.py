"""The little HTTP server beside DNS: /metrics, /healthz and /readyz. GET, one answer, close."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TypeAlias

from control_plane.geodns.errors import CannotListen
from control_plane.geodns.server import split_host_port

REQUEST_BYTES = 8192
TIMEOUT_S = 5.0
CONNECTIONS = 32

# Status, content type, body.
Page: TypeAlias = tuple[str, str, bytes]


class Exposition:
    """Serves pages by path from `start()` to `close()`."""

    def __init__(self, address: str, pages: Mapping[str, Callable[[], Page]]) -> None:
        self._address = address
        self._pages = pages
        self._server: asyncio.Server | None = None
        self._slots = asyncio.Semaphore(CONNECTIONS)
        self.port = 0

    async def start(self) -> None:
        """Raises `CannotListen`."""
        host, port = split_host_port(self._address)
        try:
            self._server = await asyncio.start_server(
                self._serve, host, port, limit=REQUEST_BYTES, backlog=CONNECTIONS
            )
        except OSError as error:
            raise CannotListen(
                f"cannot serve metrics on {self._address}: {error.strerror}",
                hint="`metrics` in the settings names the address; null turns it off",
            ) from error
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(TIMEOUT_S), self._slots:
                head = await reader.readuntil(b"\r\n\r\n")
                status, kind, body = self._page(head)
                writer.write(
                    f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n"
                    f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
                    + body
                )
                await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            pass  # a client that does not ask, or does not listen
        finally:
            writer.close()

    def _page(self, head: bytes) -> Page:
        words = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/"):
            return "400 Bad Request", "text/plain", b"not HTTP\n"
        if words[0] != "GET":
            return "405 Method Not Allowed", "text/plain", b"GET only\n"
        page = self._pages.get(words[1].partition("?")[0])
        if page is None:
            return "404 Not Found", "text/plain", " ".join(self._pages).encode() + b"\n"
        return page()
