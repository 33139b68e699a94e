"""What an edge's heartbeats say of its ways to each region, and what cannot wait for the next."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest

from edge_node.presence import Presence
from edge_node.settings import EdgeSettings
from runtime.identity import Identity
from tests.edge_node.cores import Mesh
from tests.edge_node.roads import Roads, onward
from tests.edge_node.worlds import RTT_MS, free_port, snapshot


class World(Roads):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        files = Mesh(folder).files("edge", "london")
        settings = EdgeSettings(
            name="london", identity=files, control_plane=("127.0.0.1:1",), state_dir=folder,
            port=free_port(),
        )  # fmt: skip
        self.ready = True
        self.presence = Presence(
            settings, 0, Identity.load(files), self.tunnels, lambda: self.ready, self.clock,
            Random(1),
        )  # fmt: skip
        self.tunnels.use(snapshot(onward("frankfurt", "dubai", 116)))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    yield world
    await world.tunnels.close()


async def test_an_edge_is_healthy_when_it_can_serve_and_reaches_a_region(world: World) -> None:
    assert not world.presence.report().healthy
    world.of("dubai")[0].become("up")
    assert world.presence.report().healthy
    world.ready = False
    assert not world.presence.report().healthy


async def test_it_tells_of_every_way_and_of_each_change(world: World) -> None:
    world.connect(RTT_MS)
    world.review()
    world.via("dubai", "frankfurt").rtt_ms = 134.0
    world.via("dubai", "frankfurt").become("up")
    world.clock.advance(60.0)
    before = world.presence.report()
    assert world.presence.report().urgent == before.urgent
    assert [(path.region, path.relay) for path in before.paths if path.region == "dubai"] == [
        ("dubai", ""),
        ("dubai", "frankfurt"),
    ]
    world.of("dubai")[0].become("silent")
    after = world.presence.report()
    assert after.regions["dubai"].reachable
    assert after.urgent != before.urgent
    (*_, newest) = after.path_events
    assert (newest.region, newest.after) == ("dubai", "via frankfurt")
    assert [path.up for path in after.paths if path.region == "dubai"] == [True, False]


async def test_a_region_that_does_not_serve_is_told_to_be_out_of_reach(world: World) -> None:
    world.connect(RTT_MS)
    before = world.presence.report()
    world.tunnels.distrust("dubai", "no tokens for 1000 ms")
    after = world.presence.report()
    assert not after.regions["dubai"].reachable
    assert after.urgent != before.urgent
    assert [path.up for path in after.paths if path.region == "dubai"] == [True]
