"""A client that does not read: how far it may fall behind, and that it gets everything later."""

from __future__ import annotations

import asyncio
import json
import socket
from types import SimpleNamespace

import pytest

from edge_node.forward.memory import Answer
from edge_node.front import event_stream
from edge_node.front.backlog import acknowledged
from edge_node.front.event_stream import LOOK_EVERY_BYTES, MOST_UNREAD_BYTES, EventStream
from tests.edge_node.worlds import ACME, MODEL, ask, events, running, streamed_text, upstream
from topology.overlay.frames import Accept, End, Request, Tokens
from topology.wire.chat import ChunkEncoder

TOKENS, CHARACTERS = 2000, 250
EVENT_BYTES = len(ChunkEncoder("0" * 18, 10**9, MODEL, False).text("x" * CHARACTERS))


def ends(sock: socket.socket) -> SimpleNamespace:
    """As granian's scope names them."""
    here, there = sock.getsockname(), sock.getpeername()
    form = "[{}]:{}" if sock.family is socket.AF_INET6 else "{}:{}"
    return SimpleNamespace(server=form.format(*here[:2]), client=form.format(*there[:2]))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_the_kernel_tells_what_a_client_has_got(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.bind((host, 0))
        listener.listen()
        client = socket.create_connection(listener.getsockname()[:2])
        server, _ = listener.accept()
    with client, server:
        scope = ends(server)
        assert acknowledged(scope) == 0
        server.sendall(b"x" * 10_000)
        for _ in range(500):
            if acknowledged(scope) == 10_000:
                break
            await asyncio.sleep(0.01)
        assert acknowledged(scope) == 10_000
    assert acknowledged(SimpleNamespace(server="unix", client="")) is None


class Reader:
    """A client that has got `got` bytes of what was sent to it, and others before."""

    def __init__(self) -> None:
        self.got: int | None = 1000
        self.sent = 0

    def send(self, data: bytes) -> None:
        self.sent += len(data)

    def stream(self) -> EventStream:
        return EventStream(self.send, str.encode, lambda: self.got)


async def test_one_that_reads_is_never_waited_for() -> None:
    reader = Reader()
    stream = reader.stream()
    for _ in range(200):
        assert stream.show("x" * 10_000) is None
        reader.got = 1000 + reader.sent
    assert reader.sent == 2_000_000


async def test_one_that_does_not_is_waited_for_until_it_has_read_half(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(event_stream, "LOOK_AGAIN_S", 0.001)
    reader = Reader()
    stream = reader.stream()
    while (room := stream.show("x" * 1000)) is None:
        assert reader.sent <= MOST_UNREAD_BYTES + LOOK_EVERY_BYTES + 1000
    assert reader.sent > MOST_UNREAD_BYTES
    reader.got = 1000 + reader.sent - MOST_UNREAD_BYTES // 2 - 1
    await asyncio.sleep(0.02)
    assert not room.done()
    reader.got += 1
    await asyncio.wait_for(room, 5)
    assert stream.show("x" * 1000) is None
    stream.close()


async def test_one_that_reads_nothing_is_looked_at_ever_more_rarely(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(event_stream, "LOOK_AGAIN_S", 0.001)
    monkeypatch.setattr(event_stream, "LOOK_SELDOM_S", 0.064)
    reader, looks = Reader(), 0

    def acknowledged() -> int | None:
        nonlocal looks
        looks += 1
        return reader.got

    stream = EventStream(reader.send, str.encode, acknowledged)
    while (room := stream.show("x" * 1000)) is None:
        pass
    before = looks
    await asyncio.sleep(0.4)
    assert looks - before <= 12
    reader.got = 1000 + reader.sent
    await asyncio.wait_for(room, 5)
    stream.close()


async def test_one_that_is_passed_on_is_waited_for_no_longer() -> None:
    reader = Reader()
    stream = reader.stream()
    while (room := stream.show("x" * 1000)) is None:
        pass
    other = stream.pass_to(lambda: None)
    assert room.done() and not room.cancelled()
    assert stream.show("x") is None
    assert other.show("x") is not None
    other.close()


async def test_where_nothing_is_known_nothing_is_waited_for() -> None:
    reader = Reader()
    reader.got = None
    stream = reader.stream()
    assert all(stream.show("x" * 10_000) is None for _ in range(200))


async def test_closing_lets_go_of_the_client() -> None:
    reader = Reader()
    stream = reader.stream()
    while (room := stream.show("x" * 1000)) is None:
        pass
    stream.close()
    await asyncio.wait((room,))
    assert room.cancelled()
    sent = reader.sent
    assert stream.show("x") is None
    assert reader.sent == sent


async def test_the_region_waits_for_a_client_that_does_not_read() -> None:
    made = 0

    async def answer(request: Request, body: bytes) -> Answer:
        nonlocal made
        yield Accept(0.0, 0.0, "frankfurt", "sim")
        for made in range(TOKENS):
            yield Tokens(made, (made,), "x" * CHARACTERS)
        yield End("stop", 7, TOKENS, 0.0)

    async with running(upstream(frankfurt=answer)) as edge:
        loop = asyncio.get_running_loop()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", int(edge.url.rsplit(":", 1)[1])))
            body = json.dumps(ask(stream=True, max_tokens=TOKENS)).encode()
            head = (
                f"POST /v1/chat/completions HTTP/1.1\r\nhost: edge\r\nauthorization: Bearer {ACME}"
            )
            sizes = f"\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
            await loop.sock_sendall(client, (head + sizes).encode() + body)
            least = MOST_UNREAD_BYTES // EVENT_BYTES
            before = -1
            async with asyncio.timeout(20):
                while made != before or made < least - 1:  # until it stands still
                    before = made
                    await asyncio.sleep(0.5)
            assert least - 1 <= made <= least + LOOK_EVERY_BYTES // EVENT_BYTES + 100
            assert made < TOKENS - 1
            reply = b""
            async with asyncio.timeout(20):
                while data := await loop.sock_recv(client, 65_536):
                    reply += data
    text = reply.partition(b"\r\n\r\n")[2].decode()
    lines = "".join(part for part in text.split("\r\n") if not _is_size(part))
    found = events(lines)
    assert found[-1] == "[DONE]"
    assert streamed_text(found) == "x" * (TOKENS * CHARACTERS)


def _is_size(part: str) -> bool:
    """Of a chunk of a chunked reply."""
    return 0 < len(part) < 6 and all(letter in "0123456789abcdefABCDEF" for letter in part)
