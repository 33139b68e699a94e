"""The load of benchmarks/coalescing.py: many clients with one question, all at once.

    python -m benchmarks.crowd_client PORT BODY_FILE --clients N --watch NAME=PID ...

Each opens a connection of its own, asks, and reads its answer to the end. Prints one line of JSON:
how many had the whole answer, when, and the processor time and memory of the processes named, while
all of them waited. Nothing is decoded while the clock runs.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import time
from pathlib import Path
from typing import Any, cast

import uvloop

from benchmarks import harness
from benchmarks.edge_process import KEY, PATH

AT_ONCE = 200  # connections that are being opened: a listener's backlog is finite
PATIENCE_S = 60.0


class Client(asyncio.Protocol):
    """One request and its answer."""

    def __init__(self, request: bytes, over: asyncio.Future[None]) -> None:
        self._request = request
        self._over = over
        self.parts: list[bytes] = []
        self.first_at = 0.0
        self.last_at = 0.0
        self._left = -1  # of a body whose length is known

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if not self.parts:
            self.first_at = time.monotonic()
            head, _, body = data.partition(b"\r\n\r\n")
            found = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
            self._left = int(found) - len(body) if found else -1
        elif self._left > 0:
            self._left -= len(data)
        self.parts.append(data)
        if self._left == 0 or (self._left < 0 and data.endswith(b"0\r\n\r\n")):
            self.last_at = time.monotonic()
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._over.done():
            self._over.set_result(None)

    def answer(self) -> str:
        """What it was told, whatever the form; "" where that was no whole answer."""
        head, _, body = b"".join(self.parts).partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200") or not self.last_at:
            return ""
        if b"chunked" in head.lower():
            body = _unchunked(body)
        if b"text/event-stream" not in head:
            return str(json.loads(body)["choices"][0]["message"]["content"])
        events = [event.removeprefix(b"data: ") for event in body.split(b"\n\n") if event]
        if events.pop() != b"[DONE]":
            return ""
        deltas = [choice["delta"] for e in events for choice in json.loads(e)["choices"]]
        return "".join(delta.get("content", "") for delta in deltas)


def _unchunked(body: bytes) -> bytes:
    parts = []
    while body:
        size, _, body = body.partition(b"\r\n")
        parts.append(body[: int(size, 16)])
        body = body[int(size, 16) + 2 :]
    return b"".join(parts)


async def _come(port: int, request: bytes, count: int) -> list[tuple[Client, Any]]:
    loop, gate, came = asyncio.get_running_loop(), asyncio.Semaphore(AT_ONCE), []

    async def one() -> None:
        over = loop.create_future()
        async with gate:
            _, client = await loop.create_connection(
                lambda: Client(request, over), "127.0.0.1", port
            )
        came.append((client, over))

    await asyncio.gather(*(one() for _ in range(count)))
    return came


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    watched = {name: int(pid) for name, pid in (pair.split("=") for pair in options.watch)}
    body = options.body.read_bytes()
    request = (
        f"POST {PATH} HTTP/1.1\r\nhost: 127.0.0.1:{options.port}\r\n"
        f"content-type: application/json\r\nauthorization: Bearer {KEY}\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    ).encode() + body
    idle = {name: harness.rss_mib(pid) for name, pid in watched.items()}
    before = {name: harness.cpu_s(pid) for name, pid in watched.items()}
    began = time.monotonic()
    came = await _come(options.port, request, options.clients)
    asked_s = time.monotonic() - began
    await asyncio.sleep(1.0)
    waiting = sum(not client.last_at for client, _ in came)
    full = {name: harness.rss_mib(pid) for name, pid in watched.items()}
    await asyncio.wait([over for _, over in came], timeout=PATIENCE_S)
    after = {name: harness.cpu_s(pid) for name, pid in watched.items()}
    clients = [client for client, _ in came]
    answers = [client.answer() for client in clients]
    ends = sorted(client.last_at - began for client in clients if client.last_at)
    starts = sorted(client.first_at - began for client in clients if client.last_at)
    return {
        "asked_s": asked_s,
        "waiting": waiting,
        "whole": sum(bool(answer) for answer in answers),
        "answers": len({hashlib.sha256(a.encode()).digest() for a in answers if a}),
        "first_end_s": ends[0] if ends else 0.0,
        "last_end_s": ends[-1] if ends else 0.0,
        "p50_start_s": starts[len(starts) // 2] if starts else 0.0,
        "cpu_s": {name: after[name] - before[name] for name in after},
        "mib": {name: full[name] - idle[name] for name in full},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("body", type=Path)
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--watch", nargs="*", default=[], metavar="NAME=PID")
    print(json.dumps(uvloop.run(measure(parser.parse_args()))))


if __name__ == "__main__":
    main()
