"""Crowds with one question: over real sockets, and thousands who do not read."""

from __future__ import annotations

import asyncio
import json
import socket
from itertools import pairwise

from edge_node.forward.memory import Answer
from tests.edge_node.crowds import Client, Crowd, in_loop, small_buffers
from tests.edge_node.worlds import (
    ACME,
    TEXT,
    Edge,
    answering,
    ask,
    events,
    running,
    snapshot,
    streamed_text,
    upstream,
)
from tests.topology.worlds import document
from topology.overlay.frames import Accept, End, Request, Tokens
from topology.snapshot import Snapshot

__all__ = ["small_buffers"]


def unhedged(**spec: object) -> Snapshot:
    return snapshot(document("Policy", "default", retries={"hedge": False}, **spec))


def request(**extra: object) -> bytes:
    body = json.dumps(ask(temperature=0, **extra)).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: edge\r\nauthorization: Bearer {ACME}\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body


async def answer(edge: Edge, **extra: object) -> str:
    """Of one client with a connection of its own: the text that it was given."""
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    writer.write(request(**extra))
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    assert head.startswith(b"HTTP/1.1 200"), head
    if b"chunked" not in head:
        found: str = json.loads(body)["choices"][0]["message"]["content"]
        return found
    whole = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        whole += body[: int(size, 16)]
        body = body[int(size, 16) + 2 :]
    found_events = events(whole.decode())
    assert found_events[-1] == "[DONE]"
    return streamed_text(found_events)


async def test_five_hundred_connections_make_one_request() -> None:
    regions = upstream(frankfurt=answering("frankfurt", pause_s=0.2, first_s=1.0))
    async with running(regions, unhedged()) as edge:
        came = [answer(edge, stream=n % 2 == 0) for n in range(500)]
        assert set(await asyncio.gather(*came)) == {TEXT}
        assert len(regions.sent) == 1
        await edge.until(lambda: len(edge.app.flights) == 0)


async def test_a_socket_that_nobody_reads_slows_no_other() -> None:
    """The first client, and one of the others, have an answer of megabytes and read nothing."""
    words = tuple(f"{n:08d}" + "x" * 8_000 for n in range(400))
    regions = upstream(frankfurt=answering("frankfurt", words, pause_s=0.001))
    long = document("Model", "small", regions=["frankfurt"], context_tokens=100_000, cache_ttl_s=60)
    config = snapshot(document("Policy", "default", retries={"hedge": False}), long)
    async with running(regions, config) as edge:
        stuck = []
        for _ in range(2):
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.setblocking(False)
            await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", edge.port))
            stuck.append(connection)
        stuck[0].send(request(stream=True))
        await edge.until(lambda: len(regions.sent) == 1)
        await asyncio.sleep(0.3)
        stuck[1].send(request(stream=True))
        texts = await asyncio.gather(*(answer(edge, stream=n < 3) for n in range(5)))
        assert set(texts) == {"".join(words)}
        assert len(regions.sent) == 1
        for connection in stuck:
            connection.close()
        await edge.until(lambda: len(edge.app.flights) == 0)


def test_five_thousand_of_whom_half_read_nothing(small_buffers: None) -> None:
    words = tuple(f" {'x' * 60}{n}" for n in range(40))

    async def main() -> None:
        regions = upstream(frankfurt=answering("frankfurt", words, pause_s=0.01))
        crowd = Crowd(regions, unhedged())
        for n in range(5_000):
            reads = 0.0 if n % 2 else float("inf")
            body = ask(temperature=0, stream=True)
            crowd.come(Client(body, reads_per_s=reads, x_tradewind_deadline_ms="4000"))
        readers, stuck = crowd.clients[::2], crowd.clients[1::2]
        await asyncio.gather(*(client.task for client in readers if client.task))
        assert crowd.loop.time() < 2.0
        assert {client.text for client in readers} == {"".join(words)}
        assert all(client.sent_bytes < 3_000 for client in stuck)
        await crowd.served()
        assert {client.error for client in stuck} == {"deadline_exceeded"}
        assert len(regions.sent) == 1
        await crowd.settled()

    in_loop(main())


def test_a_crowd_does_not_hold_up_the_loop() -> None:
    """Others have their turns while thousands are served."""

    async def main() -> None:
        go = asyncio.Event()

        async def at_a_word(request: Request, body: bytes) -> Answer:
            yield Accept(0.0, 0.1, "frankfurt", "memory")
            await go.wait()
            yield Tokens(0, (1,), "yes")
            yield End("stop", 1, 1, 0.1)

        crowd = Crowd(upstream(frankfurt=at_a_word), unhedged())
        for n in range(2_000):
            crowd.ask(stream=n % 2 == 0)
        await asyncio.sleep(0.05)
        go.set()
        served = [0]
        while served[-1] < 2_000:
            await asyncio.sleep(0)
            served.append(sum(bool(client.chunks) for client in crowd.clients))
        assert max(now - before for before, now in pairwise(served)) <= 150
        await crowd.served()
        await crowd.settled()

    in_loop(main())
