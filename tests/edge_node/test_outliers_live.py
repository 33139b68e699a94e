"""A region whose engine fails, over real sockets: it is left alone, tried, and taken back, and no
client sees any of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from edge_node.forward.tunnels import OnChange, Tunnels
from edge_node.front.app import EdgeApp
from edge_node.front.listener import Listener
from runtime.clock import SystemClock
from tests.edge_node.cores import Core, Mesh
from tests.edge_node.worlds import (
    ACME,
    RTT_MS,
    TEXT,
    _reachable,
    answering,
    ask,
    free_port,
    snapshot,
)
from tests.topology.worlds import document, region
from topology.overlay.errors import RegionFailure
from topology.overlay.frames import Accept, Failure, Request
from topology.overlay.tunnel import Tunnel, TunnelSettings
from topology.overlay.via import Via

HEADERS = {"authorization": f"Bearer {ACME}", "cache-control": "no-store"}
JURISDICTIONS = {"frankfurt": "EU", "dubai": "AE", "singapore": "SG"}
HOLD_S, SLOW_S = 1.0, 1.0


class World:
    """Three regions, of which some are broken; the first of the route is frankfurt."""

    def __init__(self, mesh: Mesh) -> None:
        self.broken: set[str] = set()
        self.cores = {
            name: Core(name, self._region(name), mesh.identity("core", name)) for name in RTT_MS
        }
        self.tunnels: Tunnels
        self.app: EdgeApp
        self.url = ""

    def _region(self, name: str) -> Any:
        good = answering(name, pause_s=0.001)

        async def answer(request: Request, body: bytes) -> Any:
            if name in self.broken:
                yield Accept(0.0, 0.1, name, "memory")
                raise RegionFailure(name, Failure("engine", "broken", 500, True))
            async for frame in good(request, body):
                yield frame

        return answer

    async def ask(self, client: httpx.AsyncClient, times: int) -> Counter[str]:
        """Who answered; each answer must be whole."""
        found: Counter[str] = Counter()
        for _ in range(times):
            reply = await client.post(self.url, json=ask(), headers=HEADERS)
            assert reply.status_code == 200, reply.text
            assert reply.json()["choices"][0]["message"]["content"] == TEXT
            found[reply.headers["x-tradewind-region"]] += 1
        return found


async def until(holds: Callable[[], object], seconds: float = 20.0) -> None:
    end = asyncio.get_running_loop().time() + seconds
    while not holds():
        assert asyncio.get_running_loop().time() < end, "it did not come to pass in time"
        await asyncio.sleep(0.01)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    mesh = Mesh(tmp_path)
    world = World(mesh)
    for core in world.cores.values():
        await core.start()
    identity = mesh.identity("edge", "london")
    settings = TunnelSettings(silent_after_ms=2000)  # on a busy machine

    def make(
        name: str, address: str, on_change: OnChange, /, *, via: Via | None, turn: int
    ) -> Tunnel:
        return Tunnel(
            name, address, identity, settings=settings, via=via, turn=turn, on_change=on_change
        )

    world.tunnels = Tunnels("london", 0, make, rng=Random(1))
    loop = asyncio.get_running_loop()
    world.app = EdgeApp("london", world.tunnels, SystemClock(), Random(1), loop.time)
    names = {"models": ["*"], "tenants": ["*"], "regions": list(RTT_MS)}
    policy = {
        "outliers": {"hold_s": HOLD_S, "slow_start_s": SLOW_S},
        "retries": {"budget_min_per_s": 100.0, "hedge": False},
    }
    regions = (
        region(name, lies, int(world.cores[name].address.split(":")[1]))
        for name, lies in JURISDICTIONS.items()
    )
    config = snapshot(
        *regions,
        document("Route", "all", prefer="ordered", **names),
        document("Policy", "default", **policy),
    )
    world.app.use(config)
    world.tunnels.use(config)
    await asyncio.wait_for(world.tunnels.all_connected(), 20)
    port = free_port()
    listener = Listener(world.app, "127.0.0.1", port)
    listener.start()
    await _reachable(port)
    world.url = f"http://127.0.0.1:{port}/v1/chat/completions"
    yield world
    listener.stop_accepting()
    await world.app.drain(1.0)
    await listener.stopped(1.0)
    await world.tunnels.close()
    for core in world.cores.values():
        await core.stop()


async def test_a_region_that_fails_is_left_tried_and_taken_back(world: World) -> None:
    async with httpx.AsyncClient(timeout=20) as client:
        await until(lambda: all(v.reachable for v in world.tunnels.views().values()))
        assert await world.ask(client, 5) == {"frankfurt": 5}
        world.broken.add("frankfurt")
        sent = len(world.cores["frankfurt"].sent)
        assert await world.ask(client, 20) == {"dubai": 20}
        # Five found it; each time that a hold ended meanwhile, one more tried it.
        assert 5 <= len(world.cores["frankfurt"].sent) - sent < 15
        assert world.tunnels.left_alone_total >= 1
        world.broken.clear()
        async with asyncio.timeout(20):
            while (await world.ask(client, 10))["frankfurt"] < 10:
                await asyncio.sleep(0.1)
        assert world.tunnels.doubted("frankfurt") == ""
        assert world.app.figures.replies == {}  # no client was told of an error


async def test_where_most_fail_all_are_asked(world: World) -> None:
    async with httpx.AsyncClient(timeout=20) as client:
        await until(lambda: all(v.reachable for v in world.tunnels.views().values()))
        world.broken.update(("frankfurt", "dubai"))
        assert await world.ask(client, 20) == {"singapore": 20}
        assert len(world.cores["frankfurt"].sent) > 5
        assert world.tunnels.doubted("frankfurt") == ""
