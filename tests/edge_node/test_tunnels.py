"""Tunnels follow the snapshot: made, replaced, retired; nothing under way is dropped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from edge_node.forward import retired
from edge_node.forward.tunnels import addresses_of
from tests.edge_node.roads import Roads
from tests.edge_node.worlds import snapshot
from tests.topology.worlds import document, region
from topology.overlay.errors import PathDown
from topology.resources import Key
from topology.snapshot import Snapshot


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Roads]:
    monkeypatch.setattr(retired, "CHECK_S", 0.02)
    world = Roads()
    yield world
    await world.tunnels.close()
    assert all(tunnel.closed for tunnel in world.made)


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


async def test_one_tunnel_per_region_and_none_made_anew_without_need(world: Roads) -> None:
    world.tunnels.use(snapshot())
    world.tunnels.use(snapshot())
    assert sorted(t.region for t in world.made) == ["dubai", "frankfurt", "singapore"]
    assert not any(view.reachable for view in world.tunnels.views().values())
    for tunnel in world.made:
        tunnel.become("up")
    assert all(view.reachable for view in world.tunnels.views().values())


async def test_a_change_shows_in_the_views_at_once(world: Roads) -> None:
    world.tunnels.use(snapshot())
    before = world.tunnels.views()
    assert world.tunnels.views() is before
    tunnel = world.of("dubai")[0]
    tunnel.become("up")
    assert world.tunnels.views()["dubai"].reachable
    world.send("dubai")
    assert tunnel.requests == 1
    tunnel.become("waiting")
    assert not world.tunnels.views()["dubai"].reachable
    with pytest.raises(PathDown):
        world.send("dubai")


async def test_a_new_address_is_connected_to_before_the_old_is_let_go(world: Roads) -> None:
    world.tunnels.use(snapshot())
    (old,) = world.of("frankfurt")
    old.become("up")
    old.open_exchanges = 1
    world.tunnels.use(snapshot(linked("10.9.9.9:1")))
    old, new = world.of("frankfurt")
    assert new.address == "10.9.9.9:1"
    world.send("frankfurt")
    assert (old.requests, new.requests) == (1, 0)
    new.become("up")
    world.send("frankfurt")
    assert (old.requests, new.requests) == (1, 1)
    await asyncio.sleep(0.1)
    assert old.state == "up"  # something still runs in it
    old.open_exchanges = 0
    await asyncio.sleep(0.1)
    assert old.state == "closed"


async def test_a_second_change_replaces_the_tunnel_that_was_coming(world: Roads) -> None:
    world.tunnels.use(snapshot())
    world.of("frankfurt")[0].become("up")
    world.tunnels.use(snapshot(linked("10.9.9.1:1")))
    world.tunnels.use(snapshot(linked("10.9.9.2:1")))
    old, first, second = world.of("frankfurt")
    await asyncio.sleep(0.1)
    assert (old.state, first.state) == ("up", "closed")
    second.become("up")
    await asyncio.sleep(0.1)
    assert old.state == "closed"
    world.send("frankfurt")
    assert second.requests == 1


async def test_a_change_that_is_taken_back_before_it_took_effect(world: Roads) -> None:
    world.tunnels.use(snapshot())
    world.of("frankfurt")[0].become("up")
    world.tunnels.use(snapshot(linked("10.9.9.1:1")))
    world.tunnels.use(snapshot())
    assert world.tunnels.views()["frankfurt"].reachable
    world.of("frankfurt")[-1].become("up")
    await asyncio.sleep(0.1)
    alive = [t for t in world.of("frankfurt") if t.state != "closed"]
    assert [t.address for t in alive] == ["127.0.0.1:4433"]


async def test_a_region_that_is_removed_is_let_go_when_it_is_done(world: Roads) -> None:
    model = document("Model", "small", regions=["frankfurt"], context_tokens=10)
    route = document("Route", "all", models=["*"], tenants=["*"], regions=["frankfurt"])
    before = snapshot(model, route)
    world.tunnels.use(before)
    (gone,) = world.of("dubai")
    gone.become("up")
    gone.open_exchanges = 1
    without: Snapshot = before.changed(2, [], [Key("Region", "dubai"), Key("Link", "london-dubai")])
    world.tunnels.use(without)
    assert "dubai" not in world.tunnels.views()
    with pytest.raises(PathDown):
        world.send("dubai")
    await asyncio.sleep(0.1)
    assert gone.state == "up"
    gone.open_exchanges = 0
    await asyncio.sleep(0.1)
    assert gone.state == "closed"


async def test_round_trip_times_are_read_anew_after_a_while(world: Roads) -> None:
    world.tunnels.use(snapshot())
    (tunnel,) = world.of("dubai")
    tunnel.rtt_ms = 12.0
    tunnel.become("up")
    before = world.tunnels.views()
    assert before["dubai"].rtt_ms == 12.0
    tunnel.rtt_ms = 40.0
    world.clock.advance(0.2)
    assert world.tunnels.views() is before
    world.clock.advance(0.1)
    assert world.tunnels.views()["dubai"].rtt_ms == 40.0
    tunnel.rtt_ms = 41.0  # which could not matter
    before = world.tunnels.views()
    world.clock.advance(1.0)
    assert world.tunnels.views() is before


async def test_a_snapshot_that_comes_after_the_end_opens_nothing(world: Roads) -> None:
    world.tunnels.use(snapshot())
    await world.tunnels.close()
    made = len(world.made)
    world.tunnels.use(snapshot(region("oslo", "EU", 9)))
    assert len(world.made) == made
    assert world.tunnels.views() == {}
