"""An edge over real sockets: its way to a region is cut, requests go through another region's
core, and come back when the way has lived for a while."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
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
from tests.edge_node.roads import onward
from tests.edge_node.worlds import ACME, TEXT, _reachable, answering, ask, free_port, snapshot
from tests.topology.worlds import document, link, region
from topology.overlay.tunnel import Tunnel, TunnelSettings
from topology.overlay.via import Via

HOLD_BACK_S = 1.0
HEADERS = {"authorization": f"Bearer {ACME}", "cache-control": "no-store"}


class Wire(asyncio.DatagramProtocol):
    """Passes datagrams on to a port, and back, until it is cut. One sender's port at a time each:
    every one gets a socket of its own."""

    def __init__(self, port: int) -> None:
        self.port = 0
        self.cut = False
        self.passed = 0
        self._to = ("127.0.0.1", port)
        self._transport: asyncio.DatagramTransport | None = None
        self._ways: dict[Any, asyncio.DatagramTransport] = {}
        self._opening: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(
            lambda: self, local_addr=("127.0.0.1", 0)
        )
        self.port = self._transport.get_extra_info("sockname")[1]

    def close(self) -> None:
        for transport in (self._transport, *self._ways.values()):
            if transport is not None:
                transport.close()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if self.cut:
            return
        way = self._ways.get(addr)
        if way is not None:
            self.passed += 1
            way.sendto(data)
            return
        task = asyncio.ensure_future(self._open(data, addr))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self, data: bytes, addr: Any) -> None:
        wire = self

        class Back(asyncio.DatagramProtocol):
            def datagram_received(self, data: bytes, _: Any) -> None:
                if not wire.cut and wire._transport is not None:
                    wire._transport.sendto(data, addr)

        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(Back, remote_addr=self._to)
        self._ways[addr] = transport
        transport.sendto(data)


class World:
    """Dubai serves; frankfurt relays to it and serves nothing. The edge reaches dubai's core
    over a wire."""

    def __init__(self, mesh: Mesh) -> None:
        answers = answering("dubai", pause_s=0.02)
        self.dubai = Core("dubai", answers, mesh.identity("core", "dubai"))
        self.frankfurt = Core("frankfurt", answers, mesh.identity("core", "frankfurt"))
        self.mesh = mesh
        self.http = free_port()
        self.wire: Wire
        self.tunnels: Tunnels
        self.answers = 0
        self.wrong: list[str] = []

    @property
    def in_use(self) -> str:
        """The relay that requests to dubai go through; "": none."""
        paths = self.tunnels.views()["dubai"].paths
        return paths[0].relay if paths and paths[0].up else "none"

    @asynccontextmanager
    async def asked(self) -> AsyncIterator[None]:
        """Within it some clients ask all the time, and each answer is whole."""
        stop = asyncio.Event()
        askers = [asyncio.create_task(self.keep_asking(stop)) for _ in range(4)]
        await self.served()
        try:
            yield
            await self.served()
        finally:
            stop.set()
            await asyncio.gather(*askers)
        assert self.wrong == []

    async def served(self) -> None:
        """Return once some more answers have come."""
        before = self.answers
        await until(lambda: self.answers >= before + 8)

    async def keep_asking(self, stop: asyncio.Event) -> None:
        """One answer after the other; each must be whole."""
        async with httpx.AsyncClient(timeout=20) as client:
            while not stop.is_set():
                url = f"http://127.0.0.1:{self.http}/v1/chat/completions"
                reply = await client.post(url, json=ask(), headers=HEADERS)
                text = reply.json().get("choices", [{}])[0].get("message", {}).get("content")
                if text != TEXT:
                    self.wrong.append(reply.text)
                self.answers += 1


async def until(holds: Callable[[], object], seconds: float = 20.0) -> None:
    end = asyncio.get_running_loop().time() + seconds
    while not holds():
        assert asyncio.get_running_loop().time() < end, "it did not come to pass in time"
        await asyncio.sleep(0.01)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(Mesh(tmp_path))
    await world.dubai.start()
    port = int(world.dubai.address.split(":")[1])
    await world.frankfurt.start(route=lambda name, _: world.dubai.address)
    world.wire = Wire(port)
    await world.wire.start()
    identity = world.mesh.identity("edge", "london")
    quick = TunnelSettings(backoff_max_ms=300, connect_timeout_ms=1000)

    def make(
        name: str, address: str, on_change: OnChange, /, *, via: Via | None, turn: int
    ) -> Tunnel:
        return Tunnel(
            name, address, identity, settings=quick, via=via, turn=turn, on_change=on_change
        )

    world.tunnels = Tunnels("london", 0, make)
    loop = asyncio.get_running_loop()
    app = EdgeApp("london", world.tunnels, SystemClock(), Random(1), loop.time)
    config = configured(world)
    app.use(config)
    world.tunnels.use(config)
    await until(lambda: len(up(world)) == 2)
    listener = Listener(app, "127.0.0.1", world.http)
    listener.start()
    await _reachable(world.http)
    yield world
    listener.stop_accepting()
    await app.drain(1.0)
    await listener.stopped(1.0)
    await world.tunnels.close()
    world.wire.close()
    for core in (world.dubai, world.frankfurt):
        await core.stop()


def configured(world: World) -> Any:
    direct = link("london", "dubai", 1)
    direct["spec"]["address"] = f"127.0.0.1:{world.wire.port}"
    frankfurt = int(world.frankfurt.address.split(":")[1])
    names = {"models": ["*"], "tenants": ["*"], "regions": ["dubai"]}
    return snapshot(
        region("dubai", "AE", 1),
        region("frankfurt", "EU", frankfurt),
        region("singapore", "SG", 1),
        direct,
        onward("frankfurt", "dubai", 1),
        document("Model", "small", regions=["dubai"], context_tokens=2048),
        document("Route", "all", **names),
        document("Policy", "default", paths={"failback_s": HOLD_BACK_S}),
    )


def up(world: World) -> list[str]:
    return [path.relay for path in world.tunnels.views()["dubai"].paths if path.up]


async def test_a_cut_is_gone_round_and_the_way_taken_again_when_it_has_lived(world: World) -> None:
    await asyncio.sleep(1.5 * HOLD_BACK_S)  # until its place is by measurements that are trusted
    await until(lambda: world.in_use == "")
    world.tunnels.log.events.clear()
    world.tunnels.log.counts.clear()
    async with world.asked():
        assert world.wire.passed > 0
        world.wire.cut = True
        await until(lambda: world.in_use == "frankfurt")
        await world.served()
        assert up(world) == ["frankfurt"]
        world.wire.cut = False
        await until(lambda: len(up(world)) == 2)
        assert world.in_use == "frankfurt"  # both live, and it is held back
        await until(lambda: world.in_use == "")
    assert world.frankfurt.sent == []  # it passed them on, and did not see one
    changes = [(e.before, e.after) for e in world.tunnels.log.events if e.region == "dubai"]
    assert changes == [("direct", "via frankfurt"), ("via frankfurt", "direct")]
    assert world.tunnels.log.counts["dubai", "died"] == 1


async def test_the_relay_may_die_and_nobody_notices(world: World) -> None:
    await until(lambda: world.in_use == "")
    async with world.asked():
        world.tunnels.log.events.clear()
        await world.frankfurt.stop()
        await until(lambda: up(world) == [""])
    assert [e for e in world.tunnels.log.events if e.region == "dubai"] == []


async def test_an_edge_that_starts_while_the_way_is_cut_goes_round_it(world: World) -> None:
    world.wire.cut = True
    await until(lambda: world.in_use == "frankfurt")
    identity = world.mesh.identity("edge", "london")

    def make(
        name: str, address: str, on_change: OnChange, /, *, via: Via | None, turn: int
    ) -> Tunnel:
        return Tunnel(name, address, identity, via=via, turn=turn, on_change=on_change)

    other = Tunnels("london", 1, make)
    other.use(configured(world))
    try:
        await until(lambda: other.views()["dubai"].reachable)
        assert [path.relay for path in other.views()["dubai"].paths if path.up] == ["frankfurt"]
    finally:
        await other.close()
