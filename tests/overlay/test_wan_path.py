"""Tunnel and server with a WAN between them: distance, loss, cuts."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from lab.wan import Wan, WanLink, WanSettings
from tests.overlay.conftest import FAST, Connect, Serve, request, until
from tests.overlay.test_tunnel import read
from topology.overlay.errors import PathDown
from topology.overlay.frames import Accept
from topology.overlay.server import ServerExchange


@asynccontextmanager
async def link(target: int, **figures: Any) -> AsyncIterator[tuple[Wan, int]]:
    """A link to `target`, and the port that it listens on."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    wanted = WanLink(name="l", listen=f"127.0.0.1:{port}", target=f"127.0.0.1:{target}", **figures)
    wan = Wan(WanSettings(links=(wanted,)))
    try:
        yield wan, port
    finally:
        wan.close()


async def test_the_tunnel_knows_how_far_the_region_is(serve: Serve, connect: Connect) -> None:
    server = await serve()
    async with link(server.port, rtt_ms=60) as (_, port):
        tunnel = await connect(port)
        for _ in range(5):
            assert await read(tunnel.open(request(), b"far")) == "far"
        assert tunnel.rtt_ms is not None
        assert 55 < tunnel.rtt_ms < 100
        await tunnel.close()


async def test_loss_loses_nothing(serve: Serve, connect: Connect) -> None:
    server = await serve()
    async with link(server.port, rtt_ms=20, loss=0.1, jitter_ms=5) as (_, port):
        tunnel = await connect(port)
        bodies = [b"%d" % n * 500 for n in range(60)]
        answers = [read(tunnel.open(request(), body)) for body in bodies]
        assert await asyncio.gather(*answers) == [body.decode() for body in bodies]
        await tunnel.close()


async def test_a_cut_is_noticed_in_time_and_a_mended_path_comes_back(
    serve: Serve, connect: Connect
) -> None:
    cancelled: list[int] = []

    def hold(exchange: ServerExchange) -> None:
        exchange.on_cancel = lambda: cancelled.append(1)
        exchange.send(Accept(0.0, 0.0, "singapore", "sim"))

    server = await serve(hold)
    async with link(server.port, rtt_ms=20) as (wan, port):
        tunnel = await connect(port, settings=FAST)
        exchange = tunnel.open(request(), b"{}")
        await exchange.next()
        wan.relays["l"].set(cut=True)
        cut = time.perf_counter()
        with pytest.raises(PathDown, match="nothing comes back"):
            await exchange.next()
        assert 0.1 < time.perf_counter() - cut < 2.5  # 0.25 s, and a busy machine
        assert tunnel.rtt_ms is None
        wan.relays["l"].set(cut=False)
        await until(lambda: tunnel.connected, 8.0)
        again = tunnel.open(request(), b"{}")
        assert isinstance(await again.next(), Accept)
        await tunnel.close()


async def test_a_path_of_half_a_second_is_not_dead(serve: Serve, connect: Connect) -> None:
    server = await serve()
    async with link(server.port, rtt_ms=500) as (_, port):
        tunnel = await connect(port)
        await asyncio.sleep(2.0)
        assert await read(tunnel.open(request(), b"slow")) == "slow"
        assert tunnel.status.path_downs == 0
        await tunnel.close()
