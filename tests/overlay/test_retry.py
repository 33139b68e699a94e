"""Newcomers must prove their address once half of the places for handshakes are taken."""

from __future__ import annotations

import asyncio
import socket
from random import Random

from aioquic.buffer import Buffer
from aioquic.quic.packet import QuicPacketType, encode_quic_retry, pull_quic_header

from tests.overlay.conftest import Connect, Serve, request, until
from tests.overlay.pair import SERVER, connection
from tests.overlay.test_tunnel import read
from topology.overlay.retry import AddressTokens
from topology.overlay.server import OverlayServer, ServerSettings

PLACES = ServerSettings(max_handshakes=20, handshake_timeout_ms=60_000)


def first_datagram() -> bytes:
    """A good first packet of a client that will never be heard of again."""
    client = connection("edge", ("core",))
    client.connect(SERVER, 100.0)
    return client.datagrams_to_send(100.0)[0][0]


async def flood(server: OverlayServer, stranger: socket.socket, count: int) -> None:
    stranger.connect(("127.0.0.1", server.port))
    for _ in range(count):
        stranger.send(first_datagram())
        await asyncio.sleep(0)
    await asyncio.sleep(0.05)


async def test_forged_first_packets_keep_nobody_out(serve: Serve, connect: Connect) -> None:
    server = await serve(settings=PLACES)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        await flood(server, stranger, 100)
        assert server._handshakes == 10
        assert server.counters.retries == 90
        for n in range(15):  # more than there are places, so each is given back
            tunnel = await connect(server.port)
            assert await read(tunnel.open(request(), b"%d" % n)) == str(n)
        assert server.counters.refused_full == 0
        assert server.counters.retries >= 105
        assert server._handshakes == 10
        sizes = []
        stranger.setblocking(False)
        while True:
            try:
                sizes.append(len(stranger.recv(2000)))
            except BlockingIOError:
                break
        assert sum(sizes) <= 3 * 100 * 1200  # RFC 9000, section 8.1: no amplifier


async def test_a_token_is_good_for_one_address_and_connection_and_for_a_while() -> None:
    tokens, others = AddressTokens(), AddressTokens()
    here, there = ("127.0.0.1", 4000), ("127.0.0.1", 4001)
    header = pull_quic_header(Buffer(data=first_datagram()), host_cid_length=8)
    retry = pull_quic_header(Buffer(data=tokens.retry(header, here, 50.0)), host_cid_length=8)
    assert retry.packet_type is QuicPacketType.RETRY
    original = header.destination_cid
    header.token, header.destination_cid = retry.token, retry.source_cid
    assert tokens.original(header, here, 51.0) == original
    assert tokens.original(header, there, 51.0) is None
    assert tokens.original(header, here, 90.0) is None
    assert others.original(header, here, 51.0) is None
    header.destination_cid = original
    assert tokens.original(header, here, 51.0) is None
    rng = Random(3)
    for size in (*range(64), 500):
        header.token = rng.randbytes(size)
        assert tokens.original(header, here, 51.0) is None


async def test_made_up_tokens_hold_no_place(serve: Serve) -> None:
    server = await serve(settings=PLACES)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.connect(("127.0.0.1", server.port))
        for n in range(30):
            client = connection("edge", ("core",))
            client.connect(SERVER, 100.0)
            client.datagrams_to_send(100.0)
            made_up = encode_quic_retry(
                version=1,
                source_cid=n.to_bytes(8, "big"),
                destination_cid=client.host_cid,
                original_destination_cid=client.original_destination_connection_id,
                retry_token=bytes(60),
            )
            client.receive_datagram(made_up, SERVER, 100.0)
            stranger.send(client.datagrams_to_send(100.0)[0][0])
        await until(lambda: server.counters.refused_token == 30)
    assert server.connections == 0
