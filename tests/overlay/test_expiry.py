"""Certificates that run out under a connection."""

from __future__ import annotations

import asyncio
import math
from random import Random

import pytest

from runtime.identity import Identity
from tests.overlay.certificates import Authority
from tests.overlay.conftest import Connect, Serve, answer, request, until
from tests.overlay.test_path_live import fails, hold
from topology.overlay.errors import PathDown
from topology.overlay.server import ServerExchange


@pytest.mark.parametrize("whose", ["core", "edge"])
async def test_a_connection_does_not_outlive_a_certificate(
    whose: str, ca: Authority, core: Identity, edge: Identity, serve: Serve, connect: Connect
) -> None:
    short = ca.issue(whose, core.principal.name if whose == "core" else "tokyo",
                     days=(-1, 5 / 86_400))  # fmt: skip
    cancelled: list[int] = []

    def think(exchange: ServerExchange) -> None:
        exchange.on_cancel = lambda: cancelled.append(1)

    server = await serve(think, identity=short if whose == "core" else core)
    tunnel = await connect(server.port, identity=short if whose == "edge" else edge)
    exchange = tunnel.open(request(), b"{}")
    await until(lambda: server.open_exchanges == 1)
    with pytest.raises(PathDown, match="certificate has run out"):
        async with asyncio.timeout(12):
            await exchange.next()
    await until(lambda: cancelled == [1])
    await until(lambda: tunnel.status.connects >= 3)
    assert not tunnel.connected
    assert "no longer valid" in tunnel.status.reason or "expired" in tunnel.status.reason
    if whose == "core":
        server.use(core)
    else:
        tunnel.use(edge)
    await until(lambda: tunnel.connected)


async def test_a_client_that_goes_on_with_a_certificate_that_has_run_out_is_ended(
    ca: Authority, core: Identity, serve: Serve, connect: Connect
) -> None:
    server = await serve(hold, identity=core)
    tunnel = await connect(server.port, identity=ca.issue("edge", "tokyo", days=(-1, 5 / 86_400)))
    connection = tunnel._connection
    assert connection is not None
    assert connection._watch is not None
    connection._watch._expires_s = connection._watch._renew_s = math.inf
    assert "a certificate has run out" in await fails(tunnel.open(request(), b"{}"))
    assert server.counters.expired == 1
    await until(lambda: server.counters.refused_expired > 0)


async def test_an_idle_connection_gives_way_before_a_certificate_runs_out(
    ca: Authority, edge: Identity, serve: Serve, connect: Connect
) -> None:
    server = await serve(answer)
    draw = Random(2)  # which lets it give way when nearly a fifth of the time is left
    assert Random(2).random() > 0.9
    short = ca.issue("edge", "tokyo", days=(-1, 5 / 86_400))
    tunnel = await connect(server.port, identity=short, rng=draw)
    tunnel.use(edge)
    await until(lambda: tunnel.status.connected == 2, 10.0)
    await until(lambda: tunnel.connected)
    assert server.counters.expired == 0
    assert server.counters.refused_expired == 0
