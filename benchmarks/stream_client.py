"""The load of benchmarks/streams.py: many SSE streams, read with as little work as can be.

    python -m benchmarks.stream_client PORT BODY_FILE --streams N --seconds S --watch NAME=PID ...

Opens the streams, waits until each has had tokens, lets them settle, and then measures for S
seconds: tokens, their age on arrival (benchmarks/stamps.py), and the processor time of itself
and of the processes named. Prints one line of JSON. Nothing is decoded while the clock runs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from pathlib import Path
from typing import Any, cast

import uvloop

from benchmarks import harness, stamps
from benchmarks.edge_process import KEY, PATH

_CONTENT = b'"content":"'
_SKIP = len(_CONTENT)
_OPEN_PER_S = 400.0
_SETTLE_S = 1.0
_FIRST_TOKENS_S = 30.0


class Stream(asyncio.Protocol):
    """One request and its SSE answer."""

    measured: list[tuple[float, bytes]] | None = None  # of all streams: arrival, token's text
    ended = 0

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._held = b""
        self.events = 0
        self.closing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self._held:
            data = self._held + data
        at, measured = time.monotonic(), Stream.measured
        start, taken = data.find(_CONTENT), 0
        while start >= 0:
            start += _SKIP
            stop = data.find(b'"', start)
            if stop < 0:
                break
            taken = stop
            if stop > start:  # not the first event, which names the role alone
                self.events += 1
                if measured is not None:
                    measured.append((at, data[start:stop]))
            start = data.find(_CONTENT, stop)
        # An event cut in two ends neither with a blank line nor with that of a chunk.
        self._held = b"" if data.endswith((b"\n\n", b"\n\n\r\n")) else data[taken:]

    def connection_lost(self, exc: Exception | None) -> None:
        Stream.ended += not self.closing


def _request(port: int, body: bytes) -> bytes:
    return (
        f"POST {PATH} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {KEY}\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode() + body


async def _open(port: int, body: bytes, count: int) -> list[Stream]:
    loop, request = asyncio.get_running_loop(), _request(port, body)
    streams = []
    for _ in range(count):
        _, stream = await loop.create_connection(lambda: Stream(request), "127.0.0.1", port)
        streams.append(stream)
        await asyncio.sleep(1 / _OPEN_PER_S)
    end = time.monotonic() + _FIRST_TOKENS_S
    while not all(stream.events for stream in streams):
        silent = sum(not stream.events for stream in streams)
        assert time.monotonic() < end, f"{silent} streams of {count} got no token"
        await asyncio.sleep(0.05)
    await asyncio.sleep(_SETTLE_S)
    return streams


def _cpu(watched: dict[str, int]) -> dict[str, float]:
    return {"client": time.process_time()} | {n: harness.cpu_s(p) for n, p in watched.items()}


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    watched = {name: int(pid) for name, pid in (pair.split("=") for pair in options.watch)}
    streams = await _open(options.port, options.body.read_bytes(), options.streams)
    taken: list[tuple[float, bytes]] = []
    before, began, ended = _cpu(watched), time.monotonic(), Stream.ended
    Stream.measured = taken
    await asyncio.sleep(options.seconds)
    Stream.measured = None
    wall_s, after = time.monotonic() - began, _cpu(watched)
    memory = {name: harness.rss_mib(pid) for name, pid in watched.items()}
    ended = Stream.ended - ended
    for stream in streams:
        stream.closing = True
        stream.transport.abort()
    return {
        "wall_s": wall_s,
        "cpu_s": {name: after[name] - before[name] for name in after},
        "rss_mib": memory,
        "ended": ended,
        "events": len(taken),
        **_ages(taken),
    }


def _ages(taken: list[tuple[float, bytes]]) -> dict[str, float]:
    size = stamps.CHARACTERS
    ages = sorted(
        stamps.age_s(text[i : i + size], at)
        for at, text in taken
        for i in range(0, len(text), size)
    )
    assert ages, "no token came while it was measured"
    return {
        "tokens": len(ages),
        **{f"p{q}_ms": ages[len(ages) * q // 100] * 1000 for q in (50, 99)},
        "worst_ms": ages[-1] * 1000,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("body", type=Path)
    parser.add_argument("--streams", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--watch", nargs="*", default=[], metavar="NAME=PID")
    print(json.dumps(uvloop.run(measure(parser.parse_args()))))


if __name__ == "__main__":
    main()
