"""The node's side: replicas that are dead, deaf, old or strange do not disturb it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import grpc
import grpc.aio
import pytest

from control_plane.membership.settings import MembershipSettings
from control_plane.store.memory import MemoryStore
from runtime.clock import SystemClock
from tests.control_plane.mesh import Mesh, until
from tests.membership.replicas import PATIENCE, core_report, node, replica
from topology.wire.channel import server_credentials, server_options
from topology.wire.gen.tradewind.v1 import membership_pb2 as pb
from topology.wire.gen.tradewind.v1 import membership_pb2_grpc
from topology.wire.membership_client import MembershipClient, Report


class Strange(membership_pb2_grpc.MembershipServicer):
    """A replica that answers as it is told."""

    def __init__(self, **reply: Any) -> None:
        self.reply = reply
        self.deaf = False
        self.heartbeats: list[pb.Heartbeat] = []

    async def Keep(self, requests: Any, context: Any) -> None:
        await context.send_initial_metadata(())
        async for heartbeat in requests:
            self.heartbeats.append(heartbeat)
            if not self.deaf:
                await context.write(pb.HeartbeatReply(**self.reply))


@contextlib.asynccontextmanager
async def strange(mesh: Mesh, servicer: Any = None) -> AsyncIterator[str]:
    server = grpc.aio.server(options=server_options())
    if servicer is not None:
        membership_pb2_grpc.add_MembershipServicer_to_server(servicer, server)
    port = server.add_secure_port(
        "127.0.0.1:0", server_credentials(mesh.identity("control/strange"))
    )
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(0)


async def test_it_finds_the_one_replica_that_lives(mesh: Mesh) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        async with replica(mesh, MemoryStore()) as here, strange(mesh) as other:
            deaf = f"127.0.0.1:{silent.getsockname()[1]}"
            endpoints = ["127.0.0.1:1", deaf, other, here.endpoint]
            async with node(mesh, "core/dubai", endpoints, core_report) as client:
                await until(lambda: client.status.registered, 20)
                assert client.status.endpoint == here.endpoint


async def test_a_replica_that_answers_no_more_is_left(mesh: Mesh) -> None:
    replicas = [Strange(registered=True, interval_s=0.1), Strange(interval_s=0.1)]
    async with (
        strange(mesh, replicas[0]) as one,
        strange(mesh, replicas[1]) as two,
        node(mesh, "core/dubai", [one, two], core_report) as client,
    ):
        await until(lambda: client.status.connected)
        serving = 0 if client.status.endpoint == one else 1
        replicas[serving].deaf = True
        await until(lambda: replicas[1 - serving].heartbeats)
        await until(lambda: client.status.connected)


async def test_the_lease_is_kept_and_shown(mesh: Mesh) -> None:
    servicer = Strange(lease=42, registered=True, interval_s=0.1)
    async with strange(mesh, servicer) as endpoint:
        async with node(mesh, "core/dubai", [endpoint], core_report) as client:
            await until(lambda: len(servicer.heartbeats) >= 3)
            assert [h.lease for h in servicer.heartbeats[:2]] == [0, 42]
            servicer.reply = {"lease": 0, "registered": False, "interval_s": 0.1}
            await until(lambda: not client.status.registered)
            assert client.status.lease == 42
        assert servicer.heartbeats[-1].leaving
        assert len({h.incarnation for h in servicer.heartbeats}) == 1


@pytest.mark.parametrize("interval_s", [0.0, -5.0, float("nan"), float("inf"), 1e9])
async def test_no_interval_makes_it_rush_or_fall_silent(mesh: Mesh, interval_s: float) -> None:
    servicer = Strange(interval_s=interval_s)
    async with (
        strange(mesh, servicer) as endpoint,
        node(mesh, "core/dubai", [endpoint], core_report),
    ):
        await until(lambda: servicer.heartbeats)
        await asyncio.sleep(0.5)
        assert len(servicer.heartbeats) <= 8


async def test_two_processes_of_one_name_do_not_chase_each_other(mesh: Mesh) -> None:
    async with (
        replica(mesh, MemoryStore()) as here,
        node(mesh, "core/dubai", [here.endpoint], core_report) as first,
        node(mesh, "core/dubai", [here.endpoint], core_report),
    ):
        await until(lambda: "another stream" in first.status.detail)
        figures = {s.name: s.value for s in here.service.samples()}
        assert figures["tradewind_membership_refused_total"] <= 6


async def test_a_report_that_fails_does_not_end_it(mesh: Mesh) -> None:
    calls: list[int] = []

    def report() -> Report:
        calls.append(1)
        if len(calls) < 3:
            raise ValueError("not yet")
        return core_report()

    async with (
        replica(mesh, MemoryStore()) as here,
        node(mesh, "core/dubai", [here.endpoint], report) as client,
    ):
        await until(lambda: client.status.registered)


async def test_it_stops_at_once_whatever_the_replica_does(mesh: Mesh) -> None:
    servicer = Strange(interval_s=0.1)
    loop = asyncio.get_running_loop()
    async with strange(mesh, servicer) as endpoint:
        async with node(mesh, "core/dubai", [endpoint], core_report) as client:
            await until(lambda: client.status.connected)
            servicer.deaf = True
            begun_s = loop.time()
        assert loop.time() - begun_s < 3
    client = MembershipClient(
        "core/dubai",
        ["127.0.0.1:1"],
        lambda: mesh.identity("core/dubai"),
        core_report,
        SystemClock(),
        Random(1),
        PATIENCE,
    )
    await client.close()  # never started
    client.start()
    await asyncio.sleep(0)
    begun_s = loop.time()
    await client.close()
    assert loop.time() - begun_s < 2


async def test_without_endpoints_it_rests(mesh: Mesh) -> None:
    async with node(mesh, "core/dubai", [], core_report) as client:
        await asyncio.sleep(0.05)
        assert not client.status.connected


async def test_many_nodes_at_once(mesh: Mesh) -> None:
    """A hundred nodes on two replicas, one of which dies."""
    store = MemoryStore()
    settings = MembershipSettings(ttl_s=6.0, interval_s=1.0)
    async with (
        replica(mesh, store, settings) as first,
        replica(mesh, store, settings) as second,
        contextlib.AsyncExitStack() as stack,
    ):
        clients = []
        for n in range(60):
            entering = node(
                mesh,
                "edge/tokyo",
                [first.endpoint, second.endpoint],
                core_report,
                node_id=f"edge/tokyo/{n}",
            )
            clients.append(await stack.enter_async_context(entering))
        await until(lambda: len(second.registry.members) == 60, 20)
        await until(lambda: all(c.status.registered for c in clients), 20)
        leases = {c.status.lease for c in clients}
        await first.kill()
        await until(lambda: all(c.status.endpoint == second.endpoint for c in clients), 20)
        await until(lambda: all(c.status.registered for c in clients), 20)
        assert len(second.registry.members) == 60
        assert {c.status.lease for c in clients} == leases
