"""Directives over real sockets: from the store to nodes, and onto their disks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import grpc.aio

from control_plane import keys
from control_plane.admin.status import Now, status
from control_plane.admin.status_sources import NO_SOURCES
from control_plane.catalog import Catalog
from control_plane.directives import state as states
from control_plane.directives.known import Directives
from control_plane.directives.state import State
from control_plane.discovery.server import DiscoveryServer, DiscoverySettings
from control_plane.store.base import Put, Store
from control_plane.store.memory import MemoryStore
from runtime import atomic_file
from runtime.clock import SystemClock
from runtime.errors import TradewindError
from tests.control_plane.mesh import QUICK, Mesh, until, world
from topology.directive import NONE, Directive
from topology.snapshot import Snapshot
from topology.wire import last_good
from topology.wire.ads_client import AdsClient
from topology.wire.channel import server_credentials, server_options


class Small:
    """Discovery and what it follows, on a free port."""

    def __init__(self, mesh: Mesh, store: Store, folder: Path | None) -> None:
        snapshots = folder / "snapshot" if folder else None
        self.catalog = Catalog(store, snapshots, SystemClock(), Random(1))
        self.directives = Directives(store, folder / "directives" if folder else None, Random(1))
        self.discovery = DiscoveryServer(
            self.catalog, "cp-1", SystemClock(), DiscoverySettings(debounce_ms=20), self.directives
        )
        self.server = grpc.aio.server(options=server_options())
        self.discovery.add_to(self.server)
        credentials = server_credentials(mesh.identity("control/cp-1"))
        self.port = self.server.add_secure_port("127.0.0.1:0", credentials)

    def session(self, node: str) -> Any:
        [found] = [s for s in self.discovery.sessions if s.node_id == node]
        return found


@asynccontextmanager
async def small(mesh: Mesh, store: Store, folder: Path | None = None) -> AsyncIterator[Small]:
    it = Small(mesh, store, folder)
    it.catalog.start()
    it.directives.start()
    it.discovery.start()
    await it.server.start()
    try:
        yield it
    finally:
        await it.discovery.close()
        await it.server.stop(0)
        await it.directives.close()
        await it.catalog.close()


@asynccontextmanager
async def follower(
    mesh: Mesh, principal: str, port: int, kept: Path | None = None, told: Any = lambda _: None
) -> AsyncIterator[AdsClient]:
    client = AdsClient(
        principal,
        [f"127.0.0.1:{port}"],
        mesh.identity(principal),
        kept,
        lambda _: None,
        SystemClock(),
        Random(2),
        QUICK,
        told,
    )
    client.start()
    try:
        yield client
    finally:
        await client.close()


async def say(store: Store, number: int, term: int = 1, **fields: Any) -> State:
    state = State(term=term, number=number, **fields)
    await store.transact([], [Put(keys.DIRECTOR_STATE, states.encode(state))])
    return state


def to(region: str, edge: str = "tokyo") -> dict[str, dict[str, dict[str, float]]]:
    return {edge: {"standard": {region: 1.0}}}


async def test_a_directive_reaches_its_node_and_no_other(mesh: Mesh) -> None:
    store = MemoryStore()
    told: dict[str, list[int]] = {"edge/tokyo": [], "edge/london": []}
    async with (
        small(mesh, store) as replica,
        follower(
            mesh, "edge/tokyo", replica.port, None, lambda d: told["edge/tokyo"].append(d.number)
        ) as tokyo,
        follower(
            mesh, "edge/london", replica.port, None, lambda d: told["edge/london"].append(d.number)
        ) as london,
    ):
        await until(lambda: tokyo.status.connected and london.status.connected)
        assert tokyo.directive is NONE
        await say(store, 1)
        await until(lambda: tokyo.directive.number == london.directive.number == 1)
        await say(store, 2, shares=to("dubai"))
        await until(lambda: tokyo.directive.number == 2)
        assert tokyo.directive.shares == {"standard": {"dubai": 1.0}}
        await until(lambda: replica.session("edge/tokyo").acked_directive == 2)
        assert replica.session("edge/london").acked_directive == 2
        assert told == {"edge/tokyo": [1, 2], "edge/london": [1]}


async def test_a_node_starts_from_the_directive_on_its_disk(mesh: Mesh, tmp_path: Path) -> None:
    store = MemoryStore()
    kept = tmp_path / "edge.snapshot"
    async with small(mesh, store) as replica:
        await say(store, 3, shares=to("dubai"))
        async with follower(mesh, "edge/tokyo", replica.port, kept) as edge:
            await until(lambda: edge.directive.number == 3)
    told: list[Directive] = []
    async with follower(mesh, "edge/tokyo", 1, kept, told.append) as edge:
        assert edge.directive.shares == {"standard": {"dubai": 1.0}}
        assert told == [edge.directive]
    # A damaged one is ignored, and another node's is not taken for ours.
    beside = tmp_path / "edge.snapshot.directive"
    async with follower(mesh, "edge/london", 1, kept) as other:
        assert other.directive is NONE
    beside.write_bytes(beside.read_bytes()[:-3])
    async with follower(mesh, "edge/tokyo", 1, kept) as edge:
        assert edge.directive is NONE


async def test_a_refused_directive_leaves_the_old_one(mesh: Mesh) -> None:
    def picky(directive: Directive) -> None:
        if "dubai" in directive.down:
            raise TradewindError("dubai is never down")

    store = MemoryStore()
    async with (
        small(mesh, store) as replica,
        follower(mesh, "edge/tokyo", replica.port, None, picky) as edge,
    ):
        await say(store, 1)
        await until(lambda: edge.directive.number == 1)
        await say(store, 2, verdicts={"dubai": states.Verdict(False, 0.0)})
        await until(lambda: replica.session("edge/tokyo").directive_nack is not None)
        assert replica.session("edge/tokyo").directive_nack.reason == "dubai is never down"
        now = Now(monotonic_s=0.0, wall_s=0.0, started_s=0.0)
        view, sessions = replica.catalog.view, replica.discovery.sessions
        [node] = status("cp-1", store.status, view, sessions, NO_SOURCES, now).nodes
        assert node.directive_nack == replica.session("edge/tokyo").directive_nack.version.number
        assert (node.directive_nack_reason, node.nack_s) == ("dubai is never down", 0.0)
        assert node.directive_nack_s > 0
        [nacks] = [s for s in replica.discovery.samples() if s.name.endswith("nacks_total")]
        assert nacks.value == 1
        assert edge.directive.number == 1
        assert edge.status.connected
        await say(store, 3)
        await until(lambda: replica.session("edge/tokyo").acked_directive == 3)
        assert edge.directive.down == ()


async def test_a_replica_restarted_without_its_store_directs_on(mesh: Mesh, tmp_path: Path) -> None:
    store = MemoryStore()
    async with small(mesh, store, tmp_path) as replica:
        await say(store, 4, shares=to("dubai"))
        await until(lambda: replica.directives.state.number == 4)
    last_good.save(tmp_path / "snapshot", Snapshot.build(7, world()))
    store.cut()
    async with (
        small(mesh, store, tmp_path) as replica,
        follower(mesh, "edge/tokyo", replica.port, tmp_path / "new-edge.snapshot") as edge,
    ):
        await until(lambda: edge.directive.number == 4)
        assert edge.directive.shares == {"standard": {"dubai": 1.0}}
        assert edge.status.stale


async def test_what_is_held_is_confirmed_until_the_replica_goes(mesh: Mesh, tmp_path: Path) -> None:
    store = MemoryStore()
    kept = tmp_path / "edge.snapshot"
    clock = SystemClock()
    async with (
        small(mesh, store) as replica,
        follower(mesh, "edge/tokyo", replica.port, kept) as edge,
    ):
        assert edge.status.confirmed_s == 0.0
        await until(lambda: edge.status.connected)
        assert clock.wall() - edge.status.confirmed_s < 1.0
        assert clock.now() - edge.status.confirmed_at < 1.0
        store.cut()
        await until(lambda: edge.status.stale)
        ended_s, ended_at = edge.status.confirmed_s, edge.status.confirmed_at
        assert (edge.status.confirmed_s, edge.status.confirmed_at) == (ended_s, ended_at)
    # After a restart it is as old as the file says.
    last_good.save(kept, Snapshot.empty())
    saver = last_good.LastGood(kept)
    held = saver.load()
    assert held is not None
    await saver.vouch(held, clock.wall() - 500.0)
    async with follower(mesh, "edge/tokyo", 1, kept) as edge:
        assert 499.0 < clock.wall() - edge.status.confirmed_s < 510.0
        assert 499.0 < clock.now() - edge.status.confirmed_at < 510.0
    await saver.vouch(Snapshot.empty(), clock.wall())
    assert clock.wall() - saver.vouched_s > 499.0, "only for what is in the file"
    assert atomic_file.load(kept, "snapshot") is not None
