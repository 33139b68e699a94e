"""A small world for edge tests: one edge, three regions, real keys, answers from memory."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import httpx

from edge_node.forward.memory import Answer, MemoryUpstream, Region
from edge_node.front.app import EdgeApp
from edge_node.front.listener import Listener
from runtime.clock import SystemClock
from tests.topology import worlds
from topology.overlay.errors import PathDown, RegionFailure
from topology.overlay.frames import Accept, End, Failure, Request, Tokens
from topology.snapshot import Snapshot

ACME = "sk-acme-0123456789"
EUROBANK = "sk-eurobank-0123456789"
MODEL = "small"
RTT_MS = {"frankfurt": 18.0, "dubai": 123.0, "singapore": 173.0}  # nearest first
WORDS = ("The", " trade", " winds", " carried", " ships", " across", " the", " sea", ".")
TEXT = "".join(WORDS)


def key_hash(key: str) -> str:
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def tenant(name: str, key: str, **spec: Any) -> dict[str, Any]:
    return worlds.document("Tenant", name, api_keys=[key_hash(key)], **spec)


def snapshot(*extra: dict[str, Any]) -> Snapshot:
    return worlds.base(
        tenant("acme", ACME, tier="vip"), tenant("eurobank", EUROBANK, residency=["EU"]), *extra
    )


def answering(
    region: str, words: tuple[str, ...] = WORDS, *, pause_s: float = 0.0, first_s: float = 0.0
) -> Region:
    """A region that answers with `words`, one token each, and can continue an answer."""

    async def answer(request: Request, body: bytes) -> Answer:
        yield Accept(0.0, 0.1, region, "memory")
        await asyncio.sleep(first_s)
        for position in range(len(request.resume_tokens), len(words)):
            if pause_s:
                await asyncio.sleep(pause_s)
            yield Tokens(position, (1000 + position,), words[position])
        yield End("stop", 7, len(words), 0.1)

    return answer


def dying(
    region: str, after: int, words: tuple[str, ...] = WORDS, cut: MemoryUpstream | None = None
) -> Region:
    """A region whose path dies after it has sent `after` tokens; for good, where `cut` is given."""

    async def answer(request: Request, body: bytes) -> Answer:
        yield Accept(0.0, 0.1, region, "memory")
        start = len(request.resume_tokens)
        for position in range(start, min(start + after, len(words))):
            yield Tokens(position, (1000 + position,), words[position])
        if cut is not None:
            cut.cut(region)
        elif start == len(words):
            yield End("stop", 7, len(words), 0.1)
            return
        raise PathDown(region, "it was cut")

    return answer


def refusing(region: str, code: str, status: int, *, retryable: bool) -> Region:
    async def answer(request: Request, body: bytes) -> Answer:
        failure = Failure(code, f"{region} says {code}", status, retryable)  # type: ignore[arg-type]
        raise RegionFailure(region, failure)
        yield

    return answer


def silent(region: str) -> Region:
    async def answer(request: Request, body: bytes) -> Answer:
        yield Accept(0.0, 0.1, region, "memory")
        await asyncio.sleep(3600)

    return answer


def upstream(**regions: Region) -> MemoryUpstream:
    """All three regions; those not given answer well."""
    return MemoryUpstream({n: regions.get(n, answering(n)) for n in RTT_MS}, RTT_MS)


class Edge:
    """An edge on a real port."""

    def __init__(self, app: EdgeApp, regions: MemoryUpstream, port: int) -> None:
        self.app = app
        self.regions = regions
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.chat_url = f"{self.url}/v1/chat/completions"
        self.connections: list[asyncio.StreamWriter] = []  # closed with the edge

    async def until(self, condition: Any, timeout_s: float = 5.0) -> None:
        end = asyncio.get_running_loop().time() + timeout_s
        while not condition():
            assert asyncio.get_running_loop().time() < end, "it did not come to pass in time"
            await asyncio.sleep(0.01)


@asynccontextmanager
async def running(
    regions: MemoryUpstream,
    config: Snapshot | None = None,
    *,
    body_timeout_s: float = 10.0,
    http2: bool = False,
) -> AsyncIterator[Edge]:
    loop = asyncio.get_running_loop()
    app = EdgeApp(
        "london", regions, SystemClock(), Random(1), loop.time, body_timeout_s=body_timeout_s
    )
    app.use(config or snapshot())
    port = free_port()
    listener = Listener(app, "127.0.0.1", port, http2=http2)
    listener.start()
    await _reachable(port)
    edge = Edge(app, regions, port)
    try:
        yield edge
    finally:
        for writer in edge.connections:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        listener.stop_accepting()
        await app.drain(1.0)
        await listener.stopped(2.0)


async def _reachable(port: int) -> None:
    for _ in range(200):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.01)
            continue
        writer.close()
        await writer.wait_closed()
        return
    raise AssertionError("the edge did not listen")


def ask(**extra: Any) -> dict[str, Any]:
    """A chat request's body."""
    return {"model": MODEL, "messages": [{"role": "user", "content": "Where to?"}], **extra}


async def post(edge: Edge, body: Any, *, key: str = ACME, **headers: str) -> httpx.Response:
    """POST to the chat endpoint; `_` in header names becomes `-`."""
    sent = {"authorization": f"Bearer {key}"} | {k.replace("_", "-"): v for k, v in headers.items()}
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with httpx.AsyncClient(timeout=20) as client:
        return await client.post(edge.chat_url, content=content, headers=sent)


def events(text: str) -> list[Any]:
    """The events of an SSE body; the last is the string [DONE] when it ended well."""
    assert text.endswith("\n\n")
    datas = [part.removeprefix("data: ") for part in text.strip().split("\n\n")]
    return [data if data == "[DONE]" else json.loads(data) for data in datas]


def streamed_text(found: list[Any]) -> str:
    return "".join(
        choice["delta"].get("content", "")
        for event in found
        if isinstance(event, dict)
        for choice in event.get("choices", [])
    )
