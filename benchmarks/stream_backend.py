"""An HTTP back end that streams, for the routers that streaming is compared with.

    python -m benchmarks.stream_backend PORT STEP_MS [FILE]

It answers `"stream": true` with OpenAI's chunks, one token (benchmarks/stamps.py) each step for
every stream, without end; other chats with the bytes in FILE. Plain sockets, one write a token:
it is to cost as little as can be.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import cast

import uvloop

from benchmarks import stamps
from benchmarks.router_pages import PAGES
from topology.wire.chat import ChunkEncoder

_STREAMS = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
)


class Streams:
    """Writes one token to each stream at every step."""

    def __init__(self, step_s: float) -> None:
        self.open: set[asyncio.Transport] = set()
        self._pace = stamps.Pace(step_s)
        self._events = ChunkEncoder("0123456789abcdef0000", 1_700_000_000, "benchmark", False)
        self.role = _chunk(self._events.role())

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._pace.until_next_s())
            event = _chunk(self._events.text(stamps.now().decode()))
            for transport in self.open:
                transport.write(event)


class Connection(asyncio.Protocol):
    """HTTP/1.1, as far as a router needs it."""

    def __init__(self, streams: Streams, answer: bytes) -> None:
        self._streams = streams
        self._answer = answer
        self._held = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._held += data
        while (end := self._held.find(b"\r\n\r\n")) >= 0:
            head = self._held[:end].lower()
            stop = end + 4 + _content_length(head)
            if len(self._held) < stop:
                return
            body, self._held = self._held[end + 4 : stop], self._held[stop:]
            self._answer_to(head, body)

    def connection_lost(self, exc: Exception | None) -> None:
        self._streams.open.discard(self._transport)

    def _answer_to(self, head: bytes, body: bytes) -> None:
        if head.startswith(b"get"):
            self._reply(PAGES.get(head.split(b" ", 2)[1].decode(), b"{}"))
        elif b'"stream": true' in body or b'"stream":true' in body:
            self._transport.write(_STREAMS + self._streams.role)
            self._streams.open.add(self._transport)
        else:
            self._reply(self._answer)

    def _reply(self, body: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        self._transport.write(head % len(body) + body)


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line[15:])
    return 0


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def main(port: int, step_ms: float, answer: bytes) -> None:
    streams = Streams(step_ms / 1000)
    loop = asyncio.get_running_loop()
    await loop.create_server(lambda: Connection(streams, answer), "127.0.0.1", port, backlog=2048)
    await streams.run()


if __name__ == "__main__":
    whole = Path(sys.argv[3]).read_bytes() if len(sys.argv) > 3 else b"{}"
    uvloop.run(main(int(sys.argv[1]), float(sys.argv[2]), whole))
