"""What replicas see reaches the director over real sockets, and nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import grpc
import grpc.aio
import pytest

from control_plane.directives.observed import (
    ClassLoad,
    EdgeReport,
    NodeState,
    Observed,
    RegionSeen,
    union,
)
from control_plane.director import feed
from control_plane.director.feed import Feeds, FeedService
from control_plane.director.local import merged
from runtime.clock import SystemClock
from runtime.identity import Identity
from tests.control_plane.mesh import Mesh
from topology.wire.channel import open_channel, server_credentials, server_options
from topology.wire.gen.tradewind.v1 import replicas_pb2 as pb
from topology.wire.gen.tradewind.v1 import replicas_pb2_grpc


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Mesh:
    return Mesh(tmp_path_factory.mktemp("mesh"))


@asynccontextmanager
async def served(mesh: Mesh, seen: Observed, port: int = 0) -> AsyncIterator[str]:
    server = grpc.aio.server(options=server_options())
    service = FeedService("cp-2", lambda: seen, SystemClock())
    replicas_pb2_grpc.add_ReplicasServicer_to_server(service, server)
    at = server.add_secure_port(
        f"127.0.0.1:{port}", server_credentials(mesh.identity("control/cp-2"))
    )
    await server.start()
    try:
        yield f"127.0.0.1:{at}"
    finally:
        await server.stop(0)


async def until(condition: object, seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.02)


def sees(node: str, at_s: float = 1.0) -> Observed:
    report = EdgeReport(node=node, edge=node.split("/")[1], at_s=at_s)
    return Observed(at_s=at_s, edges={node: report})


async def test_the_director_hears_what_another_replica_sees(mesh: Mesh) -> None:
    feeds = Feeds(lambda: mesh.identity("control/cp-1"), SystemClock(), Random(1))
    async with served(mesh, sees("edge/tokyo")) as address:
        feeds.follow({"cp-2": address})
        await until(lambda: feeds.parts)
        assert feeds.parts[0].edges["edge/tokyo"].edge == "tokyo"
        feeds.follow({})
        assert feeds.parts == []
    await feeds.close()


async def test_a_replica_that_comes_back_is_heard_again(mesh: Mesh) -> None:
    feeds = Feeds(lambda: mesh.identity("control/cp-1"), SystemClock(), Random(1))
    async with served(mesh, sees("edge/tokyo")) as address:
        feeds.follow({"cp-2": address})
        await until(lambda: feeds.parts)
    async with served(mesh, sees("edge/london"), int(address.rpartition(":")[2])):
        await until(lambda: any("edge/london" in part.edges for part in feeds.parts))
    await feeds.close()


async def test_a_feed_is_read_again_whatever_went_wrong(mesh: Mesh) -> None:
    identity = mesh.identity("control/cp-1")
    attempts = iter([RuntimeError("a mistake of ours"), identity])

    def next_identity() -> Identity:
        found = next(attempts)
        if isinstance(found, Exception):
            raise found
        return found

    feeds = Feeds(next_identity, SystemClock(), Random(1))
    async with served(mesh, sees("edge/tokyo")) as address:
        feeds.follow({"cp-2": address})
        await until(lambda: feeds.parts)
    await feeds.close()


@pytest.mark.parametrize("principal", ["edge/tokyo", "operator/ann", "dns/ns1"])
async def test_only_replicas_may_read_a_feed(mesh: Mesh, principal: str) -> None:
    async with (
        served(mesh, sees("edge/tokyo")) as address,
        open_channel(address, mesh.identity(principal)) as channel,
    ):
        call = replicas_pb2_grpc.ReplicasStub(channel).Feed(pb.FeedRequest(interval_s=1))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_feeds_are_bounded(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "FEEDS_MAX", 1)
    async with (
        served(mesh, sees("edge/tokyo")) as address,
        open_channel(address, mesh.identity("control/cp-1")) as channel,
    ):
        stub = replicas_pb2_grpc.ReplicasStub(channel)
        first = stub.Feed(pb.FeedRequest(interval_s=1))
        assert (await first.read()).replica == "cp-2"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Feed(pb.FeedRequest(interval_s=1)).read()
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        first.cancel()


def test_of_two_reports_the_newer_counts_and_a_connected_node_outranks_one_that_left() -> None:
    here = Observed(
        10.0,
        edges={"edge/a": EdgeReport("edge/a", "a", 9.0)},
        nodes={"edge/a": NodeState("edge/a", False, 9.5, 7)},
    )
    there = Observed(
        10.0,
        edges={"edge/a": EdgeReport("edge/a", "a", 8.0)},
        nodes={"edge/a": NodeState("edge/a", True, 3.0, 6)},
    )
    both = union([there, here], 11.0)
    assert both.edges["edge/a"].at_s == 9.0
    assert both.nodes["edge/a"].acked_revision == 6
    assert union([here, there], 11.0) == both


def test_loads_and_heartbeats_become_one_report() -> None:
    load = EdgeReport(
        "edge/a",
        "a",
        5.0,
        {"vip:x": ClassLoad(1.0)},
        {"x": RegionSeen(reachable=True, rtt_ms=None, requests_per_s=3.0)},
    )
    seen = {
        "edge/a": {"x": RegionSeen(False, 40.0), "y": RegionSeen(True, 9.0)},
        "edge/b/1": {"x": RegionSeen(True, 1.0)},
        "core/x": {},
    }
    out = merged({"edge/a": load}, seen, 6.0)
    assert set(out) == {"edge/a", "edge/b/1"}
    assert out["edge/a"].regions["x"] == RegionSeen(False, 40.0, 3.0)
    assert out["edge/a"].regions["y"].rtt_ms == 9.0
    assert (out["edge/b/1"].edge, out["edge/b/1"].at_s) == ("b", 6.0)
