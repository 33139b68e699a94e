"""Bad input of any kind: a clear error, bounded work, nothing changed, and the edge goes on."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.edge_node.worlds import (
    ACME,
    TEXT,
    Edge,
    answering,
    ask,
    events,
    post,
    running,
    silent,
    snapshot,
    streamed_text,
    upstream,
)
from tests.topology.worlds import document

HEAD = f"POST /v1/chat/completions HTTP/1.1\r\nhost: edge\r\nauthorization: Bearer {ACME}\r\n"


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    async with running(upstream()) as edge:
        yield edge
        assert len(edge.app.flights) == 0
        assert (await post(edge, ask())).status_code == 200  # whatever happened, it goes on


class Wire:
    """A bare connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, edge: Edge) -> Wire:
        wire = cls(*await asyncio.open_connection("127.0.0.1", edge.port))
        edge.connections.append(wire.writer)
        return wire

    async def send(self, data: str | bytes) -> None:
        self.writer.write(data.encode("latin-1") if isinstance(data, str) else data)
        await self.writer.drain()

    async def reply(self) -> tuple[int, bytes]:
        """One response: status and body (by Content-Length). Status 0: the peer closed."""
        try:
            head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 5)
        except (asyncio.IncompleteReadError, ConnectionError):
            return 0, b""
        status = int(head.split(b" ", 2)[1])
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                return status, await self.reader.readexactly(int(line.split(b":")[1]))
        return status, b""

    async def ended(self) -> bool:
        try:
            return await asyncio.wait_for(self.reader.read(1), 5) == b""
        except ConnectionError:
            return True

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


def _valid(**extra: Any) -> bytes:
    return json.dumps(ask(**extra)).encode()


# Bodies


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"17",
        b'"text"',
        _valid()[:-1],
        _valid() + b"x",
        b"\xff\xfe" + _valid(),
        _valid().replace(b"Where", b"Wh\xffre"),
        b"[" * 100_000,
        b'{"model":' + b"[" * 50_000,
        b'{"model": "small"}',
        b'{"messages": []}',
        b'{"model": "small", "messages": []}',
        b'{"model": "small", "messages": "hello"}',
        b'{"model": 5, "messages": [{"role": "user", "content": "x"}]}',
        b'{"model": "small", "messages": [{"role": "user"}]}',
        b'{"model": "small", "messages": [{"role": "emperor", "content": "x"}]}',
        b'{"model": "small", "messages": [{"role": "user", "content": {"a": 1}}]}',
        _valid(temperature=5),
        _valid(temperature="hot"),
        _valid(max_tokens=0),
        _valid(max_tokens=-1),
        _valid(max_tokens=10**30),
        _valid(top_p=0),
        _valid(stream="yes"),
        _valid(stop=["a"] * 9),
        _valid(n=2),
        _valid(nonsense=1),
        _valid(seed=1.5),
        _valid().replace(b'"small"', b'"sm\\ud800all"'),
    ],
)
async def test_bad_bodies(edge: Edge, body: bytes) -> None:
    reply = await post(edge, body)
    assert reply.status_code in (400, 404)
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert len(reply.content) < 4096
    assert edge.regions.sent == []


async def test_a_body_above_the_limit_is_refused_unread(edge: Edge) -> None:
    edge.app.use(snapshot(document("Policy", "default", request_max_bytes=2048)))
    wire = await Wire.open(edge)
    await wire.send(HEAD + "content-length: 10000000000\r\n\r\n")
    status, body = await wire.reply()  # before anything of it was sent
    assert status == 413
    assert json.loads(body)["error"]["code"] == "request_too_large"
    assert await wire.ended()
    await wire.close()
    padded = ask() | {"user": "u" * 3000}
    assert (await post(edge, padded)).status_code == 413
    assert (await post(edge, ask() | {"user": "u" * 1000})).status_code == 200


async def test_an_endless_body_is_cut_at_the_limit(edge: Edge) -> None:
    edge.app.use(snapshot(document("Policy", "default", request_max_bytes=65536)))
    wire = await Wire.open(edge)
    await wire.send(HEAD + "transfer-encoding: chunked\r\n\r\n")
    chunk = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
    for _ in range(8):
        await wire.send(chunk)
    status, _ = await wire.reply()
    assert status == 413
    assert await wire.ended()
    await wire.close()


async def test_a_chunked_body_is_read(edge: Edge) -> None:
    wire = await Wire.open(edge)
    body = _valid()
    await wire.send(HEAD + "transfer-encoding: chunked\r\n\r\n")
    for start in range(0, len(body), 7):
        part = body[start : start + 7]
        await wire.send(b"%x\r\n%s\r\n" % (len(part), part))
    await wire.send("0\r\n\r\n")
    status, answer = await wire.reply()
    assert status == 200 and TEXT.encode() in answer
    await wire.close()


# Slowness


async def test_a_client_that_sends_a_byte_now_and_then_is_let_go() -> None:
    async with running(upstream(), body_timeout_s=0.5) as edge:
        loop = asyncio.get_running_loop()
        wire = await Wire.open(edge)
        begin = loop.time()
        await wire.send(HEAD + "content-length: 1000\r\n\r\n")
        reply = asyncio.create_task(wire.reply())
        while not reply.done():
            await wire.send("{")
            await asyncio.sleep(0.1)
        status, body = await reply
        assert status == 408
        assert json.loads(body)["error"]["code"] == "slow_request"
        assert loop.time() - begin < 10.0  # all of it would take 100 s
        assert await wire.ended()
        await wire.close()
        assert len(edge.app.flights) == 0


@pytest.mark.parametrize("said", [b"", b"P", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HT"])
async def test_a_connection_that_says_no_more_is_let_go(
    monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr("edge_node.front.listener.HEADER_TIMEOUT_MS", 300)
    async with running(upstream()) as edge:
        wire = await Wire.open(edge)
        await wire.send(said)
        assert await wire.ended()
        await wire.close()


async def test_a_slow_chunked_body_is_let_go_too() -> None:
    async with running(upstream(), body_timeout_s=0.3) as edge:
        wire = await Wire.open(edge)
        await wire.send(HEAD + "transfer-encoding: chunked\r\n\r\n1\r\n{\r\n")
        status, _ = await wire.reply()
        assert status == 408
        await wire.close()


async def test_a_body_that_ends_early(edge: Edge) -> None:
    wire = await Wire.open(edge)
    await wire.send(HEAD + 'content-length: 1000\r\n\r\n{"model"')
    await edge.until(lambda: len(edge.app.flights) == 1)
    await wire.close()
    await edge.until(lambda: len(edge.app.flights) == 0)
    assert edge.regions.sent == []


# Clients that leave


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_is_noticed_in_the_region(stream: bool) -> None:
    async with running(upstream(frankfurt=silent("frankfurt"))) as edge:
        wire = await Wire.open(edge)
        body = _valid(stream=stream)
        await wire.send(HEAD + f"content-length: {len(body)}\r\n\r\n")
        await wire.send(body)
        await edge.until(lambda: len(edge.regions.sent) == 1)
        await wire.close()
        await edge.until(lambda: edge.regions.cancelled == 1, timeout_s=1.0)
        await edge.until(lambda: len(edge.app.flights) == 0)
        assert edge.app.figures.cancelled == 1


async def test_a_client_that_leaves_in_the_middle_of_a_stream() -> None:
    slow = answering("frankfurt", pause_s=0.1)
    async with running(upstream(frankfurt=slow)) as edge:
        wire = await Wire.open(edge)
        body = _valid(stream=True)
        await wire.send(HEAD + f"content-length: {len(body)}\r\n\r\n")
        await wire.send(body)
        await wire.reader.readuntil(b'"content"')
        await wire.close()
        await edge.until(lambda: edge.regions.cancelled == 1, timeout_s=1.0)
        assert len(edge.regions.sent) == 1  # and it was not tried elsewhere


# The wire


async def test_a_header_of_a_mebibyte(edge: Edge) -> None:
    wire = await Wire.open(edge)
    try:
        await wire.send(HEAD + "x-long: " + "a" * 2**20 + "\r\n\r\n")
        status, _ = await wire.reply()
        assert status in (431, 0)
    except ConnectionError:
        pass  # it closed while we were still sending: that will do
    await wire.close()


async def test_very_many_headers(edge: Edge) -> None:
    wire = await Wire.open(edge)
    try:
        await wire.send(HEAD + "".join(f"x-{n}: 1\r\n" for n in range(5000)) + "\r\n")
        status, _ = await wire.reply()
        assert status in (400, 431, 0)
    except ConnectionError:
        pass
    await wire.close()


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\x01\x02\x03\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100,  # a TLS hello
        b"SSH-2.0-OpenSSH_9.9\r\n\r\n",
        b"POST /v1/chat/completions\r\n\r\n",
        b"GET /\x00healthz HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nhost x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 200,
    ],
)
async def test_garbage_is_refused(edge: Edge, garbage: bytes) -> None:
    wire = await Wire.open(edge)
    await wire.send(garbage)
    with contextlib.suppress(OSError):  # it may have hung up already
        wire.writer.write_eof()
    status, _ = await wire.reply()
    assert status in (400, 505, 0)
    await wire.close()


async def test_garbage_after_a_good_request_harms_only_its_own_connection(edge: Edge) -> None:
    wire = await Wire.open(edge)
    body = _valid()
    good = HEAD.encode() + b"content-length: %d\r\n\r\n" % len(body) + body
    await wire.send(good + b"\x00\xff garbage\r\n\r\n" + good)
    statuses = [(await wire.reply())[0] for _ in range(2)]
    assert statuses[0] == 200
    assert statuses[1] in (400, 0)
    assert await wire.ended()
    assert len(edge.regions.sent) == 1
    await wire.close()


async def test_pipelined_requests_are_answered_in_order(edge: Edge) -> None:
    wire = await Wire.open(edge)
    out = b""
    for n in range(5):
        body = _valid(seed=n)
        out += HEAD.encode() + b"x-request-id: n%d\r\n" % n
        out += b"content-length: %d\r\n\r\n" % len(body) + body
    await wire.send(out)
    for n in range(5):
        head = await asyncio.wait_for(wire.reader.readuntil(b"\r\n\r\n"), 5)
        assert b"x-request-id: n%d\r\n" % n in head
        length = next(
            int(line.split(b":")[1])
            for line in head.split(b"\r\n")
            if line.startswith(b"content-length")
        )
        await wire.reader.readexactly(length)
    await wire.close()


# Smuggling (RFC 9112, section 11.2): two readings of one message must not be possible.

INNER = b"GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: Bearer stolen\r\n\r\n"


@pytest.mark.parametrize(
    "headers",
    [
        "content-length: 5\r\ncontent-length: 6\r\n",
        "content-length: 5, 6\r\n",
        "content-length: +5\r\n",
        "content-length: 0x5\r\n",
        "content-length: -1\r\n",
        "content-length: five\r\n",
        "transfer-encoding: gzip\r\n",
        "transfer-encoding: chunked, identity\r\n",
        "transfer-encoding : chunked\r\n",
        "content-length : 5\r\n",
        "x: y\r\n content-length: 5\r\n",
    ],
)
async def test_ambiguous_lengths_are_refused_and_the_connection_closed(
    edge: Edge, headers: str
) -> None:
    wire = await Wire.open(edge)
    await wire.send(HEAD + headers + "\r\n")
    await wire.send(b"5\r\nhello\r\n0\r\n\r\n" + INNER)
    status, _ = await wire.reply()
    assert status in (400, 501, 0)
    assert await wire.ended()
    assert edge.regions.sent == []
    await wire.close()


async def test_both_lengths_are_never_followed_by_another_request(edge: Edge) -> None:
    wire = await Wire.open(edge)
    body = _valid()
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    await wire.send(HEAD + "content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n")
    await wire.send(chunked + INNER)
    status, _ = await wire.reply()
    assert status in (200, 400)
    assert await wire.ended()  # the second request is not served on this connection
    await wire.close()


@pytest.mark.parametrize("terminator", [b"ZZ\r\n", b"-1\r\n", b"0x4\r\n", b"4\rabcd\r\n"])
async def test_bad_chunks_serve_nothing(edge: Edge, terminator: bytes) -> None:
    wire = await Wire.open(edge)
    await wire.send(HEAD + "transfer-encoding: chunked\r\n\r\n")
    await wire.send(terminator + INNER)
    status, _ = await wire.reply()
    assert status in (400, 0)
    assert await wire.ended()
    assert edge.regions.sent == []
    await wire.close()


# Whatever is sent as a body, the answer is an error in OpenAI's form.

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["model", "messages", "role", "content", "stream", "stop", "seed", "n"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.lists(st.one_of(st.binary(max_size=60), JSON.map(lambda j: json.dumps(j).encode()))))
def test_no_body_makes_the_edge_fail(bodies: list[bytes]) -> None:
    async def run() -> None:
        async with running(upstream()) as edge:
            wire = await Wire.open(edge)
            for body in bodies:
                await wire.send(HEAD + f"content-length: {len(body)}\r\n\r\n")
                await wire.send(body)
                status, reply = await wire.reply()
                assert status in (400, 404)
                assert set(json.loads(reply)) == {"error"}
            await wire.close()

    asyncio.run(run())


async def test_a_client_that_reads_slowly_gets_all_of_it() -> None:
    words = tuple("word " * 50 for _ in range(400))
    async with running(upstream(frankfurt=answering("frankfurt", words))) as edge:
        wire = await Wire.open(edge)
        body = _valid(stream=True)
        await wire.send(
            HEAD + f"connection: close\r\ncontent-length: {len(body)}\r\n\r\n" + body.decode()
        )
        await asyncio.sleep(0.3)
        raw = await asyncio.wait_for(wire.reader.read(), 10)
        await wire.close()
        text, rest = "", raw.partition(b"\r\n\r\n")[2]
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            text += rest[: int(size, 16)].decode()
            rest = rest[int(size, 16) + 2 :]
        assert streamed_text(events(text)) == "".join(words)
