"""One suite for every `Upstream`: the one in memory, and tunnels to a real overlay server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from edge_node.forward.memory import MemoryUpstream, Region
from edge_node.forward.tunnels import OnChange, Tunnels
from edge_node.forward.upstream import Exchange, Upstream
from tests.edge_node.cores import Core, Mesh
from tests.edge_node.worlds import WORDS, answering, dying, refusing, silent, snapshot
from tests.topology.worlds import region as region_document
from topology.overlay.errors import PathDown, RegionFailure
from topology.overlay.frames import Accept, End, Request, Tokens
from topology.overlay.tunnel import Tunnel
from topology.overlay.via import Via

NAMES = ("good", "dead", "full", "mute")
REGIONS: dict[str, Region] = {
    "good": answering("good"),
    "dead": dying("dead", 2),
    "full": refusing("full", "overloaded", 503, retryable=True),
    "mute": silent("mute"),
}


class Memory:
    def __init__(self) -> None:
        self.upstream = MemoryUpstream(REGIONS, {})

    def cancelled(self) -> int:
        return self.upstream.cancelled

    async def cut(self, name: str) -> None:
        self.upstream.cut(name)


class Overlay:
    def __init__(self, cores: dict[str, Core], upstream: Tunnels) -> None:
        self.cores = cores
        self.upstream = upstream

    def cancelled(self) -> int:
        return sum(core.cancelled for core in self.cores.values())

    async def cut(self, name: str) -> None:
        await self.cores[name].stop()
        while self.upstream.views()[name].reachable:
            await asyncio.sleep(0.01)


@pytest.fixture(params=["memory", "overlay"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Memory | Overlay]:
    if request.param == "memory":
        yield Memory()
        return
    mesh = Mesh(tmp_path)
    cores = {n: Core(n, region, mesh.identity("core", n)) for n, region in REGIONS.items()}
    for core in cores.values():
        await core.start()
    edge = mesh.identity("edge", "london")

    def make(
        region: str, address: str, on_change: OnChange, /, *, via: Via | None, turn: int
    ) -> Tunnel:
        return Tunnel(region, address, edge, via=via, turn=turn, on_change=on_change)

    tunnels = Tunnels("london", 0, make)
    documents = [region_document(n, "EU", int(c.address.split(":")[1])) for n, c in cores.items()]
    tunnels.use(snapshot(*documents))
    while not all(tunnels.views()[n].reachable for n in NAMES):
        await asyncio.sleep(0.01)
    yield Overlay(cores, tunnels)
    await tunnels.close()
    for core in cores.values():
        await core.stop()


def ask(upstream: Upstream, region: str) -> Exchange:
    return upstream.open(region, Request("r", "acme", "small", 9000, 3, 1, True), b"{}")


async def test_an_answer(world: Memory | Overlay) -> None:
    exchange = ask(world.upstream, "good")
    assert isinstance(await exchange.next(), Accept)
    text = ""
    while not isinstance(frame := await exchange.next(), End):
        assert isinstance(frame, Tokens)
        text += frame.text
    assert text == "".join(WORDS)
    assert frame.completion_tokens == len(WORDS)
    exchange.cancel()  # after the end it means nothing
    await asyncio.sleep(0.05)
    assert world.cancelled() == 0


async def test_a_region_that_dies_in_the_middle(world: Memory | Overlay) -> None:
    exchange = ask(world.upstream, "dead")
    assert isinstance(await exchange.next(), Accept)
    for position in range(2):
        frame = await exchange.next()
        assert isinstance(frame, Tokens) and frame.position == position
    with pytest.raises(PathDown):
        await exchange.next()


async def test_a_region_that_refuses(world: Memory | Overlay) -> None:
    with pytest.raises(RegionFailure) as caught:
        await ask(world.upstream, "full").next()
    assert (caught.value.failure.code, caught.value.retryable) == ("overloaded", True)


async def test_lost_interest_reaches_the_region(world: Memory | Overlay) -> None:
    exchange = ask(world.upstream, "mute")
    assert isinstance(await exchange.next(), Accept)
    exchange.cancel()
    exchange.cancel()
    for _ in range(1000):
        if world.cancelled():
            break
        await asyncio.sleep(0.01)
    assert world.cancelled() == 1


async def test_a_reader_may_be_cancelled_and_then_cancel(world: Memory | Overlay) -> None:
    exchange = ask(world.upstream, "mute")
    assert isinstance(await exchange.next(), Accept)
    reader = asyncio.ensure_future(exchange.next())
    await asyncio.sleep(0.05)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    exchange.cancel()
    for _ in range(1000):
        if world.cancelled():
            break
        await asyncio.sleep(0.01)
    assert world.cancelled() == 1


async def test_views_and_unreachable_regions(world: Memory | Overlay) -> None:
    views = world.upstream.views()
    assert all(views[name].reachable for name in NAMES)
    assert world.upstream.views() is views or world.upstream.views() == views
    await world.cut("good")
    assert not world.upstream.views()["good"].reachable
    with pytest.raises(PathDown):
        ask(world.upstream, "good")
    with pytest.raises(PathDown):
        ask(world.upstream, "atlantis")
