"""Real edges and cores with a whole replica: they register, say how they are, and leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from control_plane.changes.plan import Wanted
from control_plane.directives.observed import RegionSeen
from control_plane.service import Replica
from control_plane.store.memory import MemoryStore
from tests.control_plane.mesh import Mesh, at, serving, until
from tests.edge_node.test_control_plane import Lab
from tests.edge_node.worlds import RTT_MS
from tests.region_core.cores import RunningCore


@pytest.fixture
async def edge_world(tmp_path: Path) -> AsyncIterator[Lab]:
    lab = Lab(Mesh(tmp_path), tmp_path)
    for core in lab.cores:
        await core.start()
    yield lab
    await lab.stop_edge()
    for core in lab.cores:
        await core.stop()


def seen_by(replica: Replica, node: str) -> dict[str, bool]:
    views: dict[str, RegionSeen] = replica.direction.heartbeats.seen().get(node, {})
    return {region: view.reachable for region, view in views.items()}


async def test_an_edge_says_how_it_sees_each_region(edge_world: Lab) -> None:
    lab = edge_world
    async with serving(lab.mesh, MemoryStore()) as replica:
        await replica.changes.apply(Wanted(puts=lab.resources()), "operator/alice")
        await lab.start_edge(at(replica))
        every = dict.fromkeys(RTT_MS, True)
        await until(lambda: seen_by(replica, "edge/london") == every, 20)
        members = replica.direction.registry.members
        await until(lambda: "edge/london" in members and members["edge/london"].healthy)
        assert members["edge/london"].addresses == (f"127.0.0.1:{lab.port}",)
        lost = lab.cores[0]
        await lost.stop()
        await until(lambda: seen_by(replica, "edge/london") == every | {lost.name: False}, 20)
        await lab.stop_edge()  # SIGTERM
        assert not seen_by(replica, "edge/london")
        await until(lambda: "edge/london" not in members, 2)


async def test_a_core_says_its_load_that_it_drains_and_that_it_leaves(tmp_path: Path) -> None:
    pki = tmp_path / "ca"
    mesh = Mesh(tmp_path)
    async with serving(mesh, MemoryStore()) as replica:
        endpoints = [at(replica)]
        changes = {"control_plane": endpoints, "shutdown_grace_ms": 3_000}
        async with RunningCore(pki, **changes) as running:
            members, heartbeats = replica.direction.registry.members, replica.direction.heartbeats
            await until(lambda: "core/frankfurt" in members, 10)
            report = heartbeats.cores()["core/frankfurt"]
            assert report.region == "frankfurt" and report.healthy and not report.draining
            assert report.utilisation == 0.0
            draining = asyncio.create_task(running.core.service.drain(2.0))
            await until(lambda: heartbeats.cores()["core/frankfurt"].draining)
            await until(lambda: not members["core/frankfurt"].healthy)
            await draining
        await until(lambda: "core/frankfurt" not in members, 2)
        assert not heartbeats.cores()
