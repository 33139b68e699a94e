"""The population's own HTTP, and what its clients do, against servers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import pytest

from edge_node.errors import Overloaded
from lab.storm.event import Phase, Population, Share
from lab.storm.http_client import Broken, NoConnection, Pool
from lab.storm.population import Clients, Live, Settings
from lab.storm.rows import Row

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter, int], Awaitable[None]]
ASK = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"
ANSWER = b'{"choices": [{"message": {"content": "sim: all is well"}}]}'
OVERLOADED = b'{"error": {"code": "overloaded", "message": "%s"}}'


def whole(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@contextlib.asynccontextmanager
async def serving(talk: Talk) -> AsyncIterator[str]:
    """A server on loopback; `talk` is given the number of the connection."""
    count = 0
    writers = []

    async def met(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        count += 1
        writers.append(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await talk(reader, writer, count)
        writer.close()

    server = await asyncio.start_server(met, "127.0.0.1", 0)
    try:
        host, port = server.sockets[0].getsockname()
        yield f"http://{host}:{port}"
    finally:
        for writer in writers:
            writer.close()
        server.close()
        await asyncio.sleep(0)


async def request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    found = re.search(rb"content-length: (\d+)", head)
    assert found is not None
    return head + await reader.readexactly(int(found.group(1)))


@contextlib.asynccontextmanager
async def pooled(limit: int = 4) -> AsyncIterator[Pool]:
    pool = Pool(limit)
    yield pool
    pool.close()
    await asyncio.sleep(0.01)


async def test_a_reply_in_single_bytes() -> None:
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (b"one ", b"two"))
    reply = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: b\r\n\r\n" + chunks + b"0\r\n\r\n"
    )

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: int) -> None:
        for _ in range(2):
            await request(reader)
            for byte in reply:
                writer.write(bytes([byte]))
                await writer.drain()

    async with serving(talk) as url, pooled() as pool:
        for _ in range(2):  # on one connection
            found = await pool.ask(url, ASK, 5.0)
            assert (found.status, bytes(found.body), found.header(b"x-a")) == (200, b"one two", "b")
        assert pool.most == 1


async def test_the_first_token_is_text_and_not_its_announcement() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: int) -> None:
        await request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for part in (b'data: {"delta":{"role":"assistant","content":""}}', b'{"content":"a"}', b""):
            writer.write(b"%x\r\n%s\r\n" % (len(part), part))
            await writer.drain()
            await asyncio.sleep(0.05)

    async with serving(talk) as url, pooled() as pool:
        found = await pool.ask(url, ASK, 5.0)
        assert 0.03 < found.done_s - found.first_s < 5.0


async def test_a_client_that_stops_waiting_closes_its_connection() -> None:
    gone = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: int) -> None:
        await request(reader)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        gone.set()

    async with serving(talk) as url, pooled() as pool:
        with pytest.raises(TimeoutError):
            await pool.ask(url, ASK, 0.05)
        await asyncio.wait_for(gone.wait(), 5.0)


async def test_connections_are_bounded_and_counted_down_again() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: int) -> None:
        await request(reader)
        await asyncio.sleep(0.1)
        writer.write(whole(b"x", "200 OK", "Connection: close"))

    async with serving(talk) as url, pooled(limit=2) as pool:
        asked = [asyncio.create_task(pool.ask(url, ASK, 5.0)) for _ in range(5)]
        ended = await asyncio.gather(*asked, return_exceptions=True)
        assert sum(isinstance(end, NoConnection) for end in ended) == 3
        await asyncio.sleep(0.05)
        assert (await pool.ask(url, ASK, 5.0)).status == 200
        assert pool.most == 2


async def test_nobody_listens() -> None:
    async with pooled(limit=1) as pool:
        for _ in range(3):  # and what failed takes no place
            with pytest.raises(NoConnection):
                await pool.ask("http://127.0.0.1:1", ASK, 5.0)


async def test_cut_in_the_middle() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: int) -> None:
        await request(reader)
        writer.write(whole(b"x" * 100)[:-50])
        await writer.drain()

    async with serving(talk) as url, pooled() as pool:
        with pytest.raises(Broken):
            await pool.ask(url, ASK, 5.0)


async def test_closed_while_idle_is_nobodys_fault() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: int) -> None:
        await request(reader)
        writer.write(whole(b"x"))
        await writer.drain()  # and closes, without having said so

    async with serving(talk) as url, pooled() as pool:
        for _ in range(3):
            assert (await pool.ask(url, ASK, 5.0)).status == 200


# The clients

WHO = Population(timeout_s=0.3, again_s=0.01, refused_again_s=0.02, questions=1, patience_s=2.0)


async def population(url: str, who: Population, live: io.BytesIO | None = None) -> tuple[Row, ...]:
    settings = Settings(
        phases=(Phase("peak", 0.0, 0.01, 100.0),),
        cities=(Share("tokyo", 1.0),),
        population=who,
        seed=1,
        urls={"tokyo": url},
        keys={f"{tier}-{n}": "key" for tier in ("vip", "standard", "batch") for n in range(1, 9)},
        model="m",
        patience_s=5.0,
        rows="",
        live="",
    )
    clients = Clients(settings)
    await clients.run(live or io.BytesIO())
    return clients.records().rows


def answering(replies: list[bytes | None], seen: list[bytes]) -> Talk:
    """Each request gets the next of these; None: none ever."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: int) -> None:
        while True:
            seen.append(await request(reader))
            reply = replies[min(len(seen), len(replies)) - 1]
            if reply is None:
                await reader.read()
                return
            writer.write(reply)
            await writer.drain()

    return talk


ONCE = msgspec.structs.replace(WHO, deterministic_share=0.0, streamed_share=0.0)
REFUSED = whole(OVERLOADED % b"The region is full.", "503 Busy", "retry-after: 30")


async def test_after_silence_it_is_sent_again_under_the_same_name() -> None:
    seen: list[bytes] = []
    named = b'{"id": "chatcmpl-7",' + ANSWER[1:]
    replies = [None, REFUSED, whole(named, "200 OK", "x-tradewind-served-by: region")]
    impatient = msgspec.structs.replace(ONCE, obedient_share=0.0)
    async with serving(answering(replies, seen)) as url:
        (row,) = await population(url, impatient)
    assert row.ok
    assert (row.timeouts, row.refusals, len(row.sends), row.upstream) == (1, 1, 3, True)
    assert row.sends[1] - row.sends[0] >= 0.3
    assert row.sends[2] - row.sends[1] < 0.25  # whatever retry-after said
    assert len(set(seen)) == 1
    assert b"x-request-id: storm-1-0" in seen[0]
    assert (row.served_by, row.answer_id, row.cached) == ("region", "chatcmpl-7", "")


async def test_after_the_last_try_it_is_over() -> None:
    seen: list[bytes] = []
    impatient = msgspec.structs.replace(ONCE, obedient_share=0.0)
    edges = whole(OVERLOADED % Overloaded("x", 1.0).message.encode(), "503 Busy")
    async with serving(answering([edges], seen)) as url:
        (row,) = await population(url, impatient)
    assert (row.ok, row.error, len(seen), row.refusals) == (False, "overloaded", 4, 4)
    assert not row.upstream  # the edge said so itself


async def test_who_obeys_and_has_no_patience_gives_up() -> None:
    seen: list[bytes] = []
    obedient = msgspec.structs.replace(ONCE, obedient_share=1.0)
    async with serving(answering([REFUSED], seen)) as url:
        (row,) = await population(url, obedient)
    assert (row.ok, len(seen), row.upstream) == (False, 1, True)


@pytest.mark.parametrize(
    ("streamed", "reply", "error"),
    [
        (0.0, whole(b'{"choices": []}'), "not an answer"),
        (0.0, whole(b"<html>"), "not an answer"),
        (1.0, whole(b'data: {"a": 1}\n\n'), "cut"),
        (1.0, whole(b'data: {"error": {}}\n\ndata: [DONE]\n\n'), "told of an error midway"),
        (0.0, whole(b"no", "400 Bad Request"), "400"),
    ],
)
async def test_what_is_no_answer(streamed: float, reply: bytes, error: str) -> None:
    seen: list[bytes] = []
    who = msgspec.structs.replace(ONCE, streamed_share=streamed)
    async with serving(answering([reply], seen)) as url:
        (row,) = await population(url, who)
    assert (row.ok, row.error) == (False, error)
    assert len(seen) == (1 if error == "400" else 4)


async def test_another_answer_to_the_same_question_is_wrong() -> None:
    seen: list[bytes] = []
    one_tenant = tuple(msgspec.structs.replace(tier, tenants=1) for tier in WHO.tiers[:1])
    who = msgspec.structs.replace(
        ONCE, deterministic_share=1.0, tiers=one_tenant, baseline_even=False
    )
    replies: list[bytes | None] = [whole(ANSWER), whole(ANSWER.replace(b"well", b"lost"))]
    async with serving(answering(replies, seen)) as url:
        (first,) = await population(url, who)
        assert first.ok
        live = io.BytesIO()
        clients = Clients(
            Settings(
                phases=(Phase("peak", 0.0, 0.2, 10.0),),
                cities=(Share("tokyo", 1.0),),
                population=who,
                seed=1,
                urls={"tokyo": url},
                keys={"vip-1": "key"},
                model="m",
                patience_s=5.0,
                rows="",
                live="",
            )
        )
        seen.clear()
        await clients.run(live)
    found = clients.records()
    assert sorted(row.ok for row in found.rows) == [False, True]
    assert found.wrong >= 1
    first_line = live.getvalue().splitlines()[0]
    assert msgspec.json.decode(first_line, type=Live).at_s < 0.5
