"""Tunnels follow the snapshot: made, replaced, retired; nothing under way is dropped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from edge_node.forward import tunnels as module
from edge_node.forward.tunnels import OnChange, Tunnels, addresses_of
from tests.edge_node.worlds import snapshot
from tests.topology.worlds import document, region
from topology.overlay.errors import PathDown
from topology.overlay.frames import Request
from topology.overlay.tunnel import Tunnel, TunnelStatus
from topology.resources import Key
from topology.snapshot import Snapshot


class FakeTunnel:
    """Connects and fails when told; the network at its edge is the fake, not `Tunnels`."""

    def __init__(self, name: str, address: str, on_change: OnChange) -> None:
        self.region, self.address, self._on_change = name, address, on_change
        self.state = "idle"
        self.open_exchanges = 0
        self.rtt_ms: float | None = None
        self.requests = 0

    def start(self) -> None:
        self.become("connecting")

    def become(self, state: str) -> None:
        self.state = state
        self._on_change(self.status)

    @property
    def connected(self) -> bool:
        return self.state == "connected"

    @property
    def status(self) -> TunnelStatus:
        return TunnelStatus(
            self.region,
            self.address,
            self.state,  # type: ignore[arg-type]
            0.0,
            self.rtt_ms,
            "told so",
            self.open_exchanges,
            0,
            0,
            0,
            0,
            0,
        )

    def open(self, request: Request, body: bytes) -> Any:
        if not self.connected:
            raise PathDown(self.region, "told so")
        self.requests += 1
        return object()

    async def close(self) -> None:
        self.become("closed")


class World:
    def __init__(self, worker: int = 0) -> None:
        self.made: list[FakeTunnel] = []
        self.tunnels = Tunnels("london", worker, self._make)

    def _make(self, name: str, address: str, on_change: OnChange) -> Tunnel:
        tunnel = FakeTunnel(name, address, on_change)
        self.made.append(tunnel)
        return cast(Tunnel, tunnel)

    def of(self, name: str) -> list[FakeTunnel]:
        return [tunnel for tunnel in self.made if tunnel.region == name]

    def send(self, name: str) -> None:
        self.tunnels.open(name, Request("r", "acme", "small", 9, 3, 1, False), b"")


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(module, "RETIRED_CHECK_S", 0.02)
    world = World()
    yield world
    await world.tunnels.close()
    assert all(tunnel.state == "closed" for tunnel in world.made)


def addressed(name: str, *cores: str) -> dict[str, Any]:
    found = region(name, "EU")
    found["spec"]["cores"] = list(cores)
    return found


def linked(address: str) -> dict[str, Any]:
    return document(
        "Link",
        "london-frankfurt",
        source="EdgeSite/london",
        target="Region/frankfurt",
        rtt_ms=18,
        address=address,
    )


def test_a_links_address_outranks_the_regions() -> None:
    base = snapshot(addressed("frankfurt", "10.0.0.1:1", "10.0.0.2:1"))
    assert addresses_of(base, "london", "frankfurt") == ("10.0.0.1:1", "10.0.0.2:1")
    assert addresses_of(base, "elsewhere", "frankfurt") == ("10.0.0.1:1", "10.0.0.2:1")
    over = snapshot(addressed("frankfurt", "10.0.0.1:1"), linked("10.9.9.9:1"))
    assert addresses_of(over, "london", "frankfurt") == ("10.9.9.9:1",)


async def test_one_tunnel_per_region_and_none_made_anew_without_need(world: World) -> None:
    world.tunnels.use(snapshot())
    world.tunnels.use(snapshot())
    assert sorted(t.region for t in world.made) == ["dubai", "frankfurt", "singapore"]
    assert not any(view.reachable for view in world.tunnels.views().values())
    for tunnel in world.made:
        tunnel.become("connected")
    assert all(view.reachable for view in world.tunnels.views().values())


async def test_a_change_shows_in_the_views_at_once(world: World) -> None:
    world.tunnels.use(snapshot())
    before = world.tunnels.views()
    assert world.tunnels.views() is before
    tunnel = world.of("dubai")[0]
    tunnel.become("connected")
    assert world.tunnels.views()["dubai"].reachable
    world.send("dubai")
    assert tunnel.requests == 1
    tunnel.become("waiting")
    assert not world.tunnels.views()["dubai"].reachable
    with pytest.raises(PathDown):
        world.send("dubai")


async def test_a_new_address_is_connected_to_before_the_old_is_let_go(world: World) -> None:
    world.tunnels.use(snapshot())
    (old,) = world.of("frankfurt")
    old.become("connected")
    old.open_exchanges = 1
    world.tunnels.use(snapshot(linked("10.9.9.9:1")))
    old, new = world.of("frankfurt")
    assert new.address == "10.9.9.9:1"
    world.send("frankfurt")
    assert (old.requests, new.requests) == (1, 0)
    new.become("connected")
    world.send("frankfurt")
    assert (old.requests, new.requests) == (1, 1)
    await asyncio.sleep(0.1)
    assert old.state == "connected"  # something still runs in it
    old.open_exchanges = 0
    await asyncio.sleep(0.1)
    assert old.state == "closed"


async def test_a_second_change_replaces_the_tunnel_that_was_coming(world: World) -> None:
    world.tunnels.use(snapshot())
    world.of("frankfurt")[0].become("connected")
    world.tunnels.use(snapshot(linked("10.9.9.1:1")))
    world.tunnels.use(snapshot(linked("10.9.9.2:1")))
    old, first, second = world.of("frankfurt")
    await asyncio.sleep(0.1)
    assert (old.state, first.state) == ("connected", "closed")
    second.become("connected")
    await asyncio.sleep(0.1)
    assert old.state == "closed"
    world.send("frankfurt")
    assert second.requests == 1


async def test_a_change_that_is_taken_back_before_it_took_effect(world: World) -> None:
    world.tunnels.use(snapshot())
    world.of("frankfurt")[0].become("connected")
    world.tunnels.use(snapshot(linked("10.9.9.1:1")))
    world.tunnels.use(snapshot())
    assert world.tunnels.views()["frankfurt"].reachable
    world.of("frankfurt")[-1].become("connected")
    await asyncio.sleep(0.1)
    alive = [t for t in world.of("frankfurt") if t.state != "closed"]
    assert [t.address for t in alive] == ["127.0.0.1:4433"]


async def test_a_region_that_is_removed_is_let_go_when_it_is_done(world: World) -> None:
    model = document("Model", "small", regions=["frankfurt"], context_tokens=10)
    route = document("Route", "all", models=["*"], tenants=["*"], regions=["frankfurt"])
    before = snapshot(model, route)
    world.tunnels.use(before)
    (gone,) = world.of("dubai")
    gone.become("connected")
    gone.open_exchanges = 1
    without: Snapshot = before.changed(2, [], [Key("Region", "dubai"), Key("Link", "london-dubai")])
    world.tunnels.use(without)
    assert "dubai" not in world.tunnels.views()
    with pytest.raises(PathDown):
        world.send("dubai")
    await asyncio.sleep(0.1)
    assert gone.state == "connected"
    gone.open_exchanges = 0
    await asyncio.sleep(0.1)
    assert gone.state == "closed"


async def test_a_core_that_does_not_answer_gives_way_to_the_next(world: World) -> None:
    world.tunnels.use(snapshot(addressed("frankfurt", "10.0.0.1:1", "10.0.0.2:1")))
    (first,) = world.of("frankfurt")
    assert first.address == "10.0.0.1:1"
    first.become("waiting")
    second = world.of("frankfurt")[1]
    assert second.address == "10.0.0.2:1"
    second.become("waiting")
    third = world.of("frankfurt")[2]
    assert third.address == "10.0.0.1:1"
    third.become("connected")
    world.send("frankfurt")
    assert third.requests == 1
    await asyncio.sleep(0.1)
    assert [t.state for t in world.of("frankfurt")] == ["closed", "closed", "connected"]


async def test_the_old_core_may_come_back_first(world: World) -> None:
    world.tunnels.use(snapshot(addressed("frankfurt", "10.0.0.1:1", "10.0.0.2:1")))
    (first,) = world.of("frankfurt")
    first.become("connected")
    first.become("waiting")
    first.become("connected")
    assert world.tunnels.views()["frankfurt"].reachable
    world.send("frankfurt")
    assert first.requests == 1


async def test_workers_begin_with_different_cores(world: World) -> None:
    cores = addressed("frankfurt", "10.0.0.1:1", "10.0.0.2:1")
    addresses = set()
    for worker in range(2):
        other = World(worker)
        other.tunnels.use(snapshot(cores))
        addresses.add(other.of("frankfurt")[0].address)
        await other.tunnels.close()
    assert addresses == {"10.0.0.1:1", "10.0.0.2:1"}


async def test_round_trip_times_are_read_anew_after_a_while(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "VIEWS_FRESH_S", 0.02)
    world.tunnels.use(snapshot())
    (tunnel,) = world.of("dubai")
    tunnel.rtt_ms = 12.0
    tunnel.become("connected")
    assert world.tunnels.views()["dubai"].rtt_ms == 12.0
    tunnel.rtt_ms = 14.0
    await asyncio.sleep(0.05)
    assert world.tunnels.views()["dubai"].rtt_ms == 14.0
