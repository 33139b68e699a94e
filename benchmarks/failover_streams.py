"""Clients that keep long streams going, and note when every byte came."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Any

from benchmarks.failover_figures import Told, told
from lab.world import EDGE_PORT, MODEL

PATH = "/v1/chat/completions"
TIMEOUT_S = 60.0


@dataclass(eq=False)
class TokenStream:
    """One request and what came of it. Times are on the machine's monotonic clock, in seconds."""

    name: str
    edge: str
    body: dict[str, Any]
    begun: float
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    reads: list[tuple[float, bytes]] = field(default_factory=list)  # of the body, as it came
    ended: float = 0.0
    error: str = ""  # of the connection
    struck: float = 0.0  # when a fault hit the path it was on; 0: none has

    @property
    def region(self) -> str:
        return self.headers.get("x-tradewind-region", "")

    @property
    def path(self) -> str:
        return self.headers.get("x-tradewind-path", "")

    def told(self) -> Told:
        """What the client was told, read from the bytes."""
        found = told(self.reads, chunked="chunked" in self.headers.get("transfer-encoding", ""))
        if self.error and not found.error:
            found.error = self.error
        elif self.status != 200 and not found.error:
            found.error = f"HTTP {self.status}"
        return found


class Load:
    """`at_a_time` streams at each edge, each followed by the next: half greedy, half seeded.

    Every prompt is another one, so that no cache and no coalescing answers.
    """

    def __init__(
        self, edges: dict[str, tuple[str, str]], at_a_time: int, tokens: tuple[int, int], seed: int
    ) -> None:
        self._edges = edges  # name -> (address, API key)
        self.at_a_time = at_a_time
        self._tokens = tokens
        self._rng = Random(seed)
        self._seed = seed
        self._count = count(1)
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False
        self.active: set[TokenStream] = set()
        self.finished: list[TokenStream] = []

    def start(self) -> None:
        self._stopping = False
        for edge in self._edges:
            for index in range(self.at_a_time):
                task = asyncio.create_task(self._keep_asking(edge, index))
                self._tasks.append(task)

    async def stop(self) -> None:
        """No new streams; those under way come to their end."""
        self._stopping = True
        await asyncio.gather(*self._tasks)
        self._tasks.clear()

    def on(self, wanted: Callable[[TokenStream], bool]) -> list[TokenStream]:
        """The streams under way that have begun to give tokens and that `wanted` is true of."""
        return [s for s in self.active if s.reads and not s.struck and wanted(s)]

    async def _keep_asking(self, edge: str, index: int) -> None:
        await asyncio.sleep(self._rng.random())
        while not self._stopping:
            stream = self._next(edge)
            self.active.add(stream)
            try:
                await ask(stream, *self._edges[edge])
            finally:
                self.active.discard(stream)
                self.finished.append(stream)
            if stream.error or stream.status != 200:
                await asyncio.sleep(0.2)

    def _next(self, edge: str) -> TokenStream:
        number, rng = next(self._count), self._rng
        seed = rng.randrange(1 << 31) if number % 2 else None
        text = f"Question {self._seed}/{number}: tell me."
        body = question(text, rng.randint(*self._tokens), seed)
        return TokenStream(f"bench-{self._seed}-{number}", edge, body, time.monotonic())


def question(text: str, most_tokens: int, seed: int | None = None) -> dict[str, Any]:
    """A streamed chat request: greedy, or sampled with `seed`."""
    body: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": most_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0,
    }
    return body if seed is None else body | {"temperature": 0.8, "seed": seed}


async def ask(stream: TokenStream, address: str, key: str) -> None:
    """Send the request to an edge and take its answer down, to the end. Never raises for what the
    edge or the way to it did."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            reader, writer = await asyncio.open_connection(address, EDGE_PORT)
            try:
                writer.write(_request(stream, address, key))
                await _read_head(reader, stream)
                while data := await reader.read(65536):
                    stream.reads.append((time.monotonic(), data))
            finally:
                writer.close()
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        stream.error = f"{type(error).__name__}: {error}"
    stream.ended = time.monotonic()


def _request(stream: TokenStream, address: str, key: str) -> bytes:
    body = json.dumps(stream.body).encode()
    head = (
        f"POST {PATH} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n"
        f"authorization: Bearer {key}\r\ncontent-type: application/json\r\n"
        f"x-request-id: {stream.name}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def _read_head(reader: asyncio.StreamReader, stream: TokenStream) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    stream.status = int(first.split(" ")[1])
    pairs = (line.partition(":") for line in lines if line)
    stream.headers = {name.lower(): value.strip() for name, _, value in pairs}
