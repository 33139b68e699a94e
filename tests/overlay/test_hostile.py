"""A server and a tunnel that are sent nonsense, by strangers and by members of the mesh."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.identity import Identity
from tests.overlay.certificates import Authority
from tests.overlay.conftest import Connect, Serve, request, until
from tests.overlay.pair import Pair
from tests.overlay.test_tunnel import read, served
from topology.overlay.errors import OverlayProtocolError, PathDown
from topology.overlay.frames import (
    Body,
    End,
    Tokens,
    encode,
    encode_payload,
)
from topology.overlay.server import ServerSettings
from topology.overlay.session import request_bytes
from topology.overlay.tunnel import Tunnel


def raw(tunnel: Tunnel, data: bytes, fin: bool, stream_id: int | None = None) -> int:
    """Bytes of our choice on a stream of an honest tunnel's connection."""
    connection = tunnel._connection
    assert connection is not None
    if stream_id is None:
        stream_id = connection.quic.get_next_available_stream_id()
    connection.quic.send_stream_data(stream_id, data, fin)
    connection._driver.mark()
    return stream_id


def first_datagram() -> bytes:
    """A good Initial packet, to be damaged."""
    pair = Pair()
    return pair.client.datagrams_to_send(pair.now)[0][0]


async def test_random_datagrams_do_nothing(serve: Serve, connect: Connect) -> None:
    server = await serve()
    tunnel = await connect(server.port)
    rng = Random(7)
    initial = first_datagram()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.connect(("127.0.0.1", server.port))
        for n in range(1500):
            kind = n % 5
            if kind == 0:
                data = rng.randbytes(rng.choice([0, 1, 2, 20, 1200, 1400]))
            elif kind == 1:  # a short header, and a connection id that may be known
                cid = rng.choice(list(server._routes))
                data = bytes([0x40 | rng.getrandbits(6)]) + cid + rng.randbytes(40)
            elif kind == 2:  # a long header of any version
                data = bytes([0xC0 | rng.getrandbits(6)]) + rng.randbytes(1250)
            else:  # a damaged first packet
                damaged = bytearray(initial)
                for _ in range(rng.randint(1, 5)):
                    damaged[rng.randrange(len(damaged))] = rng.getrandbits(8)
                data = bytes(damaged[: rng.choice([len(damaged), 1199, 60])])
            with contextlib.suppress(OSError):
                stranger.send(data)
            if n % 50 == 0:
                await asyncio.sleep(0)
    await asyncio.sleep(0.1)
    assert server.counters.packet_errors == 0
    assert server.connections <= server.settings.max_handshakes + 1
    assert await served(tunnel) == "fine"


async def test_half_open_handshakes_are_bounded_and_expire(serve: Serve, connect: Connect) -> None:
    limits = ServerSettings(max_handshakes=20, handshake_timeout_ms=300)
    server = await serve(settings=limits)
    tunnel = await connect(server.port)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.connect(("127.0.0.1", server.port))
        for _ in range(60):
            stranger.send(first_datagram())
            await asyncio.sleep(0)
        await until(lambda: server.counters.retries > 0)
        assert server.connections <= 1 + 10
        assert server.counters.refused_full == 0
        await until(lambda: server.connections == 1)
    assert await served(tunnel) == "fine"
    assert server._handshakes == 0


async def test_one_peer_cannot_take_every_connection(
    serve: Serve, connect: Connect, ca: Authority
) -> None:
    limits = ServerSettings(max_connections=8, max_connections_per_peer=3)
    server = await serve(settings=limits)
    first = [await connect(server.port) for _ in range(3)]
    late = [await connect(server.port, wait=False) for _ in range(4)]
    await until(lambda: server.counters.refused_peer_full >= 4)
    await until(lambda: "as many connections" in late[0].status.reason)
    assert all(tunnel.connected for tunnel in first)
    other = await connect(server.port, identity=ca.issue("edge", "london"))
    assert await served(other) == "fine"
    for tunnel in (*first, *late, other):
        await tunnel.close()
    await until(lambda: server.connections == 0)
    assert server._held == {}
    assert server._handshakes == 0


async def test_noise_holds_no_handshake(serve: Serve, connect: Connect) -> None:
    server = await serve(settings=ServerSettings(max_handshakes=4))
    initial = first_datagram()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.connect(("127.0.0.1", server.port))
        for n in range(50):
            noise = bytearray(initial)
            noise[6:14] = n.to_bytes(8, "big")  # another connection id, and so another key
            stranger.send(noise)
        await asyncio.sleep(0.1)
        assert server.connections == 0
        assert server.counters.refused_full == 0
    tunnel = await connect(server.port)
    assert await served(tunnel) == "fine"


async def test_garbage_in_a_stream_resets_that_stream_alone(serve: Serve, connect: Connect) -> None:
    server = await serve()
    tunnel = await connect(server.port)
    good = request_bytes(request(), b"{}")
    for data, fin in (
        (b"\x00", False),
        (b"\x07abc", True),
        (os.urandom(500), True),
        (b"", True),
        (good[:-1], True),
        (good + good, True),
        (encode(Body(b"{}")), True),
        (encode(Tokens(0, (), "x")), False),
        (encode_payload(1, b"\xc1\xc1"), False),
        (b"\x02" + (2**61 | 3 << 62).to_bytes(8, "big"), False),
    ):
        before = server.counters.protocol_errors
        raw(tunnel, data, fin)
        await until(lambda before=before: server.counters.protocol_errors == before + 1)
    assert await served(tunnel) == "fine"
    assert server.counters.exchanges == 1
    [peer] = server._connections
    await until(lambda: not peer.quic._streams)
    assert not peer.arriving
    assert server._arriving_bytes == 0


async def test_a_good_request_after_garbage_on_the_same_stream_is_not_served(
    serve: Serve, connect: Connect
) -> None:
    server = await serve()
    tunnel = await connect(server.port)
    stream = raw(tunnel, b"\x00", False)
    raw(tunnel, request_bytes(request(), b"{}"), True, stream)
    await until(lambda: server.counters.protocol_errors == 1)
    stream = raw(tunnel, b"\x00", False)
    connection = tunnel._connection
    assert connection is not None
    connection._driver.flush_now()
    raw(tunnel, request_bytes(request(), b"{}"), True, stream)
    connection._driver.flush_now()
    await until(lambda: server.counters.protocol_errors == 2)
    await asyncio.sleep(0.05)
    assert server.counters.exchanges == 0


async def test_a_huge_frame_is_refused_and_the_client_told(serve: Serve, connect: Connect) -> None:
    server = await serve(settings=ServerSettings(max_body_bytes=10_000))
    tunnel = await connect(server.port)
    exchange = tunnel.open(request(), b"b" * 20_000)
    with pytest.raises(OverlayProtocolError, match="too_large"):
        await exchange.next()
    assert await served(tunnel) == "fine"


async def test_streams_opened_without_end_hit_a_limit_and_time_out(
    serve: Serve, connect: Connect
) -> None:
    limits = ServerSettings(max_exchanges=100, request_timeout_ms=500)
    server = await serve(settings=limits)
    hostile, honest = await connect(server.port), await connect(server.port)
    for _ in range(1000):
        raw(hostile, request_bytes(request(), b"b" * 400)[:300], False)
    await until(lambda: server.counters.timed_out > 0)
    peers = [peer for peer in server._connections if peer.arriving]
    assert all(len(peer.arriving) <= 100 for peer in peers)
    assert await served(honest) == "fine"
    await until(lambda: server.counters.timed_out >= 200)


async def test_requests_that_never_become_whole_are_bounded_in_bytes(
    serve: Serve, connect: Connect
) -> None:
    server = await serve(settings=ServerSettings(max_arriving_bytes=1_000_000))
    tunnel = await connect(server.port)
    for _ in range(60):
        raw(tunnel, request_bytes(request(), b"b" * 60_000)[:50_000], False)
    await until(lambda: server._arriving_bytes > 900_000)
    await asyncio.sleep(0.3)
    assert server._arriving_bytes <= 1_000_000
    [peer] = server._connections
    assert (
        peer._held
        == server._arriving_bytes
        == sum(entry.session.held_bytes for entry in peer.arriving.values())
    )
    await tunnel.close()
    await until(lambda: server.connections == 0)
    assert server._arriving_bytes == 0


@pytest.mark.parametrize(
    "reply",
    [
        b"\x00",
        encode(Body(b"{}")),
        encode(End("stop", 1, 1, 0.0))[:-1],
        encode(Tokens(5, (1,), "a")) + encode(Tokens(5, (1,), "a")),
        b"",
        os.urandom(300),
    ],
)
async def test_a_server_that_answers_nonsense_breaks_that_exchange_alone(
    reply: bytes, serve: Serve, connect: Connect
) -> None:
    first = True

    def on_exchange(exchange: object) -> None:
        nonlocal first
        if first:
            first = False
            exchange._connection.reply(exchange._stream_id, reply, True, 0)  # type: ignore[attr-defined]
        else:
            exchange.send(End("stop", 1, 1, 0.0))  # type: ignore[attr-defined]

    server = await serve(on_exchange)
    tunnel = await connect(server.port)
    with pytest.raises(OverlayProtocolError):
        await read(tunnel.open(request(), b"{}"))
    assert await read(tunnel.open(request(), b"{}")) == ""
    assert tunnel.status.path_downs == 0


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.tuples(st.sampled_from(range(24)), st.binary(max_size=60), st.booleans()),
        max_size=20,
    )
)
def test_any_frames_at_all_from_an_authenticated_peer(
    writes: list[tuple[int, bytes, bool]],
) -> None:
    """QUIC frames with arbitrary bytes, encrypted with the right keys."""
    pair = Pair().connect()
    client = pair.client
    for kind, data, at_server in writes:
        source, target = (client, pair.server) if at_server else (pair.server, client)
        payload = bytes([kind]) + data
        try:
            asks = target._receive_frames(payload, pair.now)
        except Exception as error:
            assert type(error).__name__ == "QuicConnectionError", error
            return
        assert asks in (True, False)
        assert source is not target
    pair.run(0.1)


async def test_a_peer_that_breaks_quic_itself_loses_its_connection_alone(
    serve: Serve, connect: Connect, edge: Identity
) -> None:
    server = await serve()
    hostile, honest = await connect(server.port), await connect(server.port)
    connection = hostile._connection
    assert connection is not None
    quic = connection.quic
    quic._remote_max_streams_bidi = 10**6  # as if the server had allowed it
    for _ in range(3000):
        quic.send_stream_data(quic.get_next_available_stream_id(), b"x")
    connection._driver.mark()
    await until(lambda: hostile.status.path_downs == 1)
    assert await served(honest) == "fine"
    assert honest.status.path_downs == 0


async def test_a_fault_inside_one_connection_ends_that_connection_alone(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await serve()
    broken, fine = await connect(server.port), await connect(server.port)
    victim = next(
        peer for peer in server._connections
        if peer.quic.get_peer_address()[1] == broken._connection.port.local_port  # type: ignore
    )  # fmt: skip

    def fail(*_: object) -> None:
        raise ZeroDivisionError("a mistake in the library")

    monkeypatch.setattr(victim.quic, "receive_datagram", fail)
    broken.open(request(), b"{}")
    await until(lambda: server.connections == 1)
    assert server.counters.packet_errors == 1
    assert await served(fine) == "fine"
    connection = fine._connection
    assert connection is not None
    monkeypatch.setattr(connection.quic, "datagrams_to_send", fail)
    exchange = fine.open(request(), b"{}")
    with pytest.raises(PathDown, match="from inside"):
        await exchange.next()
    await until(lambda: fine.status.connected == 2)
