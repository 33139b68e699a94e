"""Small HTTP and gRPC servers that say which region they stand for, and who asks them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import httpx

from tests.discovery_proxies.grpc_caller import ECHO

_HEAD_END = b"\r\n\r\n"
PIECES = 20


class Backend:
    """An HTTP/1.1 server on loopback; `port` stays the same when it is stopped and started."""

    def __init__(self, region: str) -> None:
        self.region = region
        self.port = 0
        self.served = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """As when the machine dies: nothing listens, and what was open is cut."""
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while True:
                head = await reader.readuntil(_HEAD_END)
                length = _content_length(head)
                await reader.readexactly(length)
                self.served += 1
                if b" /stream " in head:
                    await self._stream(writer)
                    continue
                body = self.region.encode()
                answer = f"HTTP/1.1 200 OK\r\nx-region: {self.region}\r\n"
                writer.write(f"{answer}content-length: {len(body)}\r\n\r\n".encode() + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _stream(self, writer: asyncio.StreamWriter) -> None:
        """An answer that takes a second, a piece at a time."""
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for number in range(PIECES):
            piece = f"{self.region} {number}\n".encode()
            writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            await writer.drain()
            await asyncio.sleep(1 / PIECES)
        writer.write(b"0\r\n\r\n")
        await writer.drain()


def _content_length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0


class GrpcBackend:
    """A gRPC server whose one method answers with the region's name."""

    def __init__(self, region: str) -> None:
        self.region = region
        self.port = 0
        self.served = 0
        self._server = grpc.aio.server()

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        handler = grpc.unary_unary_rpc_method_handler(self._where)
        service, method = ECHO[1:].split("/")
        generic = grpc.method_handlers_generic_handler(service, {method: handler})
        self._server.add_generic_rpc_handlers((generic,))
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(None)

    async def _where(self, request: bytes, context: Any) -> bytes:
        self.served += 1
        return self.region.encode()


@asynccontextmanager
async def backends(kind: Any, *regions: str) -> AsyncIterator[dict[str, Any]]:
    """One backend of a kind per region."""
    started = {region: kind(region) for region in regions}
    try:
        for backend in started.values():
            await backend.start()
        yield started
    finally:
        for backend in started.values():
            await backend.stop()


class Load:
    """Requests through a proxy, a few at a time, until the end: where they went, what failed."""

    def __init__(self, port: int, tenant: str, lanes: int = 4) -> None:
        self.where: Counter[str] = Counter()
        self.failed: list[str] = []
        self._url = f"http://127.0.0.1:{port}/v1/chat/completions"
        self._headers = {"x-tradewind-tenant": tenant, "x-tradewind-model": "smol"}
        self._lanes = lanes
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Load:
        self._client = httpx.AsyncClient(timeout=10, verify=False)
        self._tasks = [asyncio.create_task(self._lane()) for _ in range(self._lanes)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.aclose()

    async def _lane(self) -> None:
        while True:
            try:
                answer = await self._client.post(self._url, headers=self._headers, json={})
                if answer.status_code == 200:
                    self.where[answer.text] += 1
                else:
                    self.failed.append(f"{answer.status_code} {answer.text}")
            except httpx.HTTPError as error:
                self.failed.append(repr(error))

    async def next(self, count: int, timeout_s: float = 10.0) -> Counter[str]:
        """Where the next `count` requests go."""
        before = self.where.copy()
        async with asyncio.timeout(timeout_s):
            while (self.where - before).total() < count:
                await asyncio.sleep(0.01)
        return self.where - before
