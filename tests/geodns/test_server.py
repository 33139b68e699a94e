"""The DNS server on real sockets: both UDP engines, TCP with its bounds."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import dns.asyncquery
import dns.edns
import dns.flags
import dns.message
import dns.rcode
import pytest

from control_plane.geodns import mmsg
from control_plane.geodns.answers import Answerer
from control_plane.geodns.errors import CannotListen
from control_plane.geodns.lookup import View
from control_plane.geodns.server import DnsServer, ServerSettings
from control_plane.geodns.streams import QUERIES_A_TURN, StreamSettings
from tests.geodns.worlds import ALL, ZONE, edge, snapshot, table

ENGINES = ["transport"] + (["batch"] if mmsg.AVAILABLE else [])
API = f"api.{ZONE}"


@asynccontextmanager
async def serving(
    listen: str = "127.0.0.1:0", engine: str = "auto", **streams: int
) -> AsyncIterator[tuple[DnsServer, Answerer, int]]:
    answerer = Answerer(table())
    crowd = [f"192.0.2.{i}" for i in range(100)]
    answerer.replace(View.of(snapshot(edge("london", crowd)), ALL))
    settings = ServerSettings(engine=engine, streams=StreamSettings(**streams))  # type: ignore[arg-type]
    server = DnsServer(answerer, [listen], settings)
    await server.start()
    try:
        yield server, answerer, server.addresses[0][1]
    finally:
        await server.close()


def a_query(name: str = API, kind: str = "A", **how: Any) -> dns.message.Message:
    return dns.message.make_query(name, kind, **how)


@contextmanager
def datagrams_to(port: int) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.connect(("127.0.0.1", port))
        yield sock


@pytest.mark.parametrize("engine", ENGINES)
async def test_udp_and_tcp_give_the_same_answer(engine: str) -> None:
    async with serving(engine=engine) as (_, answerer, port):
        query = a_query(options=[dns.edns.ECSOption.from_text("198.18.1.0/24")])
        over_udp = await dns.asyncquery.udp(query, "127.0.0.1", 2, port)
        over_tcp = await dns.asyncquery.tcp(query, "127.0.0.1", 2, port)
        assert over_udp.answer == over_tcp.answer
        assert [r.to_text() for r in over_udp.answer[0]] == ["192.0.2.1", "192.0.2.2"]
        assert sum(count for _, _, count in answerer.tally) == 2


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_truncated_answer_leads_to_tcp(engine: str) -> None:
    async with serving(engine=engine) as (_, _, port):
        query = a_query(f"one.{ZONE}")
        answer, over_tcp = await dns.asyncquery.udp_with_fallback(query, "127.0.0.1", 2, port)
        assert over_tcp
        assert len(answer.answer[0]) == 100


@pytest.mark.parametrize("engine", ENGINES)
async def test_many_datagrams_at_once_each_get_their_own_answer(engine: str) -> None:
    async with serving(engine=engine) as (_, _, port):
        with datagrams_to(port) as sock:
            want: dict[int, str] = {}
            for number in range(150):  # more than a batch, less than the client's buffer
                # Cached ones, others that never are, some that get no answer, some malformed.
                name = API if number % 3 else f"n{number}.{ZONE}"
                query = a_query(name, id=number, use_edns=False).to_wire()
                if number % 7 == 0:
                    sock.send(b"\x80" * 20)  # a response: silence
                if number % 11 == 0:
                    sock.send(b"short")
                sock.send(query)
                want[number] = "NOERROR" if number % 3 else "NXDOMAIN"
            loop = asyncio.get_running_loop()
            got: dict[int, str] = {}
            async with asyncio.timeout(5):
                while len(got) < len(want):
                    answer = dns.message.from_wire(await loop.sock_recv(sock, 4096))
                    got[answer.id] = dns.rcode.to_text(answer.rcode())
            assert got == want
            await asyncio.sleep(0.05)
            with pytest.raises(BlockingIOError):
                sock.recv(1)


@pytest.mark.parametrize("engine", ENGINES)
async def test_two_clients_of_different_places_are_told_apart_by_address(engine: str) -> None:
    async with serving(engine=engine) as (_, answerer, port):
        answers = []
        for source in ("127.0.0.1", "127.0.0.77"):
            answer = await dns.asyncquery.udp(a_query(), "127.0.0.1", 2, port, source=source)
            answers.append([r.to_text() for r in answer.answer[0]])
        assert answers[0] == answers[1] == ["192.0.2.3", "192.0.2.2"]  # both are in Riyadh
        misses = answerer.misses
        await dns.asyncquery.udp(a_query(), "127.0.0.1", 2, port, source="127.0.0.78")
        assert answerer.misses == misses  # a new address of a known place


@pytest.mark.skipif(not mmsg.AVAILABLE, reason="recvmmsg(2) is Linux's")
@pytest.mark.parametrize(("wildcard", "asked"), [("0.0.0.0", "127.0.0.3"), ("[::]", "::1")])
async def test_the_answer_leaves_from_the_address_that_was_asked(wildcard: str, asked: str) -> None:
    async with serving(f"{wildcard}:0", engine="batch") as (_, _, port):
        for _ in range(3):  # slots are used again
            # dnspython raises UnexpectedSource where another address answers.
            answer = await dns.asyncquery.udp(a_query(), asked, 2, port)
            assert answer.rcode() == dns.rcode.NOERROR


@pytest.mark.parametrize("engine", ENGINES)
async def test_ipv6(engine: str) -> None:
    async with serving("[::1]:0", engine=engine) as (_, _, port):
        answer = await dns.asyncquery.udp(a_query(), "::1", 2, port)
        assert len(answer.answer[0]) == 2
        answer = await dns.asyncquery.tcp(a_query(), "::1", 2, port)
        assert len(answer.answer[0]) == 2


async def test_a_datagram_longer_than_any_query_is_malformed() -> None:
    async with serving(engine=ENGINES[-1]) as (_, _, port):
        with datagrams_to(port) as sock:
            sock.send(a_query(id=5).to_wire() + bytes(5000))
            async with asyncio.timeout(2):
                data = await asyncio.get_running_loop().sock_recv(sock, 4096)
            assert dns.message.from_wire(data).rcode() == dns.rcode.FORMERR


async def test_an_address_in_use_says_so() -> None:
    async with serving() as (_, answerer, port):
        again = DnsServer(answerer, ["127.0.0.1:0", f"127.0.0.1:{port}"])
        with pytest.raises(CannotListen, match=f"another process has UDP port {port}"):
            await again.start()
        with pytest.raises(CannotListen, match=r"198\.51\.100\.1:0"):
            await DnsServer(answerer, ["198.51.100.1:0"]).start()


# --- TCP ---------------------------------------------------------------------------------------


@asynccontextmanager
async def connected(
    port: int,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def framed(*queries: dns.message.Message) -> bytes:
    return b"".join(query.to_wire(prepend_length=True) for query in queries)


async def read_answer(reader: asyncio.StreamReader) -> dns.message.Message:
    async with asyncio.timeout(5):
        (size,) = struct.unpack("!H", await reader.readexactly(2))
        return dns.message.from_wire(await reader.readexactly(size))


async def test_pipelined_queries_are_answered_in_order() -> None:
    async with serving() as (_, _, port), connected(port) as (reader, writer):
        count = 3 * QUERIES_A_TURN + 5
        writer.write(framed(*(a_query(id=number) for number in range(count))))
        for number in range(count):
            assert (await read_answer(reader)).id == number
        writer.write(framed(a_query(id=9)))  # and the connection goes on
        assert (await read_answer(reader)).id == 9


async def test_a_query_may_arrive_a_byte_at_a_time() -> None:
    async with serving() as (_, _, port), connected(port) as (reader, writer):
        for byte in framed(a_query(id=7)):
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.001)
        assert (await read_answer(reader)).id == 7


async def test_a_client_may_half_close_behind_its_queries() -> None:
    async with serving() as (_, _, port), connected(port) as (reader, writer):
        count = 2 * QUERIES_A_TURN
        writer.write(framed(*(a_query(id=number) for number in range(count))))
        writer.write_eof()
        for number in range(count):
            assert (await read_answer(reader)).id == number
        async with asyncio.timeout(2):
            assert await reader.read() == b""


async def ended(reader: asyncio.StreamReader, within_s: float) -> bool:
    try:
        async with asyncio.timeout(within_s):
            while await reader.read(65_536):
                pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x0c" + b"\x00\x00\x80" + bytes(9),  # a response
        b"\x00\x05short",
        b"\x00\x00",
    ],
)
async def test_what_is_no_query_ends_the_stream(data: bytes) -> None:
    async with serving() as (_, _, port), connected(port) as (reader, writer):
        writer.write(data)
        assert await ended(reader, 2)


async def test_malformed_queries_are_answered_on_streams_too() -> None:
    async with serving() as (_, _, port), connected(port) as (reader, writer):
        data = a_query(id=3).to_wire() + b"\0"
        writer.write(struct.pack("!H", len(data)) + data + framed(a_query(id=4)))
        assert (await read_answer(reader)).rcode() == dns.rcode.FORMERR
        assert (await read_answer(reader)).rcode() == dns.rcode.NOERROR


async def test_idle_connections_end_and_a_trickle_is_idle() -> None:
    async with (
        serving(idle_timeout_ms=200) as (server, _, port),
        connected(port) as (silent, _),
        connected(port) as (busy, busy_writer),
        connected(port) as (slow, slow_writer),
    ):
        trickle = framed(a_query())
        for step in range(12):
            busy_writer.write(framed(a_query(id=step)))
            assert (await read_answer(busy)).id == step
            if step < 4:
                slow_writer.write(trickle[step : step + 1])
            await asyncio.sleep(0.04)
        assert await ended(silent, 0.5)
        assert await ended(slow, 0.5)
        assert server.streams[0].timed_out == 2
        assert not await ended(busy, 0.05)


async def test_a_new_connection_takes_the_place_of_the_longest_idle_one() -> None:
    async with (
        serving(connections=2) as (server, _, port),
        connected(port) as (first, first_writer),
        connected(port) as (second, second_writer),
    ):
        for reader, writer in ((second, second_writer), (first, first_writer)):
            writer.write(framed(a_query()))
            await read_answer(reader)
        async with connected(port) as (third, third_writer):
            third_writer.write(framed(a_query()))
            await read_answer(third)
            assert await ended(second, 1)
            assert len(server.streams[0]) == 2
        first_writer.write(framed(a_query()))
        await read_answer(first)
        assert server.streams[0].evicted == 1


async def test_a_client_that_does_not_read_is_bounded_and_then_cut() -> None:
    async with serving(unread_timeout_ms=300, unread_bytes=10_000) as (server, _, port):
        loop = asyncio.get_running_loop()
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await loop.sock_connect(sock, ("127.0.0.1", port))
        flood = framed(*(a_query(f"one.{ZONE}", id=n) for n in range(1000)))
        sent = 0
        with pytest.raises((ConnectionError, TimeoutError)):
            async with asyncio.timeout(10):
                while True:
                    sent += len(flood)
                    await loop.sock_sendall(sock, flood)
        # Each query of 45 bytes asks for 1.6 kB: far less was read than the client sent.
        assert server.streams[0].timed_out == 1
        assert len(server.streams[0]) == 0
        sock.close()


async def test_closing_lets_clients_read_what_they_were_answered() -> None:
    async with serving() as (server, _, port), connected(port) as (reader, writer):
        writer.write(framed(a_query(id=1)))
        await asyncio.sleep(0.1)
        await server.close()
        assert (await read_answer(reader)).id == 1
        assert await ended(reader, 1)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
