"""A mesh CA, and servers and tunnels that are closed when the test is over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from runtime.identity import Identity
from tests.overlay.certificates import Authority
from topology.overlay.frames import Accept, End, Request, Tokens
from topology.overlay.server import OverlayServer, ServerExchange
from topology.overlay.tunnel import Tunnel, TunnelSettings

FAST = TunnelSettings(backoff_min_ms=20, backoff_max_ms=100, probe_idle_ms=200)
END = End("stop", 3, 2, 0.25)


@pytest.fixture(scope="session")
def ca() -> Authority:
    return Authority()


@pytest.fixture(scope="session")
def core(ca: Authority) -> Identity:
    return ca.issue("core", "singapore")


@pytest.fixture(scope="session")
def edge(ca: Authority) -> Identity:
    return ca.issue("edge", "tokyo")


def request(text: str = "id", **fields: Any) -> Request:
    values = {
        "tenant": "acme", "model": "m", "deadline_ms": 5000, "priority": 3, "attempt": 1,
        "stream": True,
    }  # fmt: skip
    return Request(request_id=text, **(values | fields))


def answer(exchange: ServerExchange) -> None:
    """ACCEPT, the body as one run of tokens, END."""
    exchange.send(Accept(1.0, 0.5, "singapore", "sim"))
    exchange.send(Tokens(0, (1, 2), exchange.body.decode()))
    exchange.send(END)


async def until(holds: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait until something holds, or fail."""
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.005)


Serve = Callable[..., Awaitable[OverlayServer]]
Connect = Callable[..., Awaitable[Tunnel]]


@pytest.fixture
async def serve(core: Identity) -> AsyncIterator[Serve]:
    servers: list[OverlayServer] = []

    async def make(
        on_exchange: Callable[[ServerExchange], None] = answer, *, port: int = 0, **options: Any
    ) -> OverlayServer:
        identity = options.pop("identity", core)
        server = await OverlayServer.serve("127.0.0.1", port, identity, on_exchange, **options)
        servers.append(server)
        return server

    yield make
    for server in servers:
        await server.close()


@pytest.fixture
async def connect(edge: Identity) -> AsyncIterator[Connect]:
    tunnels: list[Tunnel] = []

    async def make(
        port: int, *, wait: bool = True, settings: TunnelSettings = FAST, **options: Any
    ) -> Tunnel:
        identity = options.pop("identity", edge)
        tunnel = Tunnel("singapore", f"127.0.0.1:{port}", identity, settings=settings, **options)
        tunnels.append(tunnel)
        tunnel.start()
        if wait:
            await until(lambda: tunnel.connected)
        return tunnel

    yield make
    for tunnel in tunnels:
        await tunnel.close()
