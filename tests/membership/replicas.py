"""Replicas that take heartbeats, on real sockets, and nodes that send them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from random import Random
from typing import Any

import grpc.aio
from xds.data.orca.v3.orca_load_report_pb2 import OrcaLoadReport

from control_plane.membership.base import Registry
from control_plane.membership.leases import LeaseRegistry
from control_plane.membership.service import MembershipService
from control_plane.membership.settings import MembershipSettings
from control_plane.store.base import Store
from runtime.clock import SystemClock
from tests.control_plane.mesh import Mesh
from topology.routing import RegionView
from topology.wire.channel import open_channel, server_credentials, server_options
from topology.wire.gen.tradewind.v1 import membership_pb2 as pb
from topology.wire.gen.tradewind.v1 import membership_pb2_grpc
from topology.wire.membership_client import MembershipClient, MembershipClientSettings, Report

QUICK = MembershipSettings(ttl_s=2.0, interval_s=0.2)
PATIENCE = MembershipClientSettings(
    connect_timeout_ms=2_000, reply_timeout_ms=1_000, backoff_min_ms=20, backoff_max_ms=200
)
REGIONS = ("singapore", "frankfurt", "dubai")


class Replica:
    """One replica's membership, on `port`."""

    def __init__(
        self,
        mesh: Mesh,
        registry: Registry,
        settings: MembershipSettings = QUICK,
        regions: Collection[str] = REGIONS,
    ) -> None:
        self._mesh = mesh
        self.registry = registry
        self.service = MembershipService(
            registry, SystemClock(), settings, regions=lambda: regions, rng=Random(3)
        )
        self._server: grpc.aio.Server | None = None
        self.port = 0

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        self.registry.start()
        self.service.start()
        self._server = grpc.aio.server(options=server_options())
        self.service.add_to(self._server)
        credentials = server_credentials(self._mesh.identity("control/cp-1"))
        self.port = self._server.add_secure_port(f"127.0.0.1:{self.port}", credentials)
        await self._server.start()

    async def close(self) -> None:
        await self.service.close()
        await self.kill()
        await self.registry.close()

    async def kill(self) -> None:
        """Streams break; nobody says goodbye."""
        if self._server is not None:
            await self._server.stop(0)
            self._server = None


@contextlib.asynccontextmanager
async def replica(
    mesh: Mesh, store: Store, settings: MembershipSettings = QUICK, **more: Any
) -> AsyncIterator[Replica]:
    registry = LeaseRegistry(store, SystemClock(), Random(4), settings.ttl_s)
    running = Replica(mesh, registry, settings, **more)
    await running.start()
    try:
        yield running
    finally:
        await running.close()


@contextlib.asynccontextmanager
async def node(
    mesh: Mesh,
    principal: str,
    endpoints: Sequence[str],
    report: Callable[[], Report],
    node_id: str | None = None,
) -> AsyncIterator[MembershipClient]:
    client = MembershipClient(
        node_id or principal,
        endpoints,
        lambda: mesh.identity(principal),
        report,
        SystemClock(),
        Random(5),
        PATIENCE,
    )
    client.start()
    try:
        yield client
    finally:
        await client.close()


class Stream:
    """A stream whose every message the test writes itself."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._call: Any = membership_pb2_grpc.MembershipStub(channel).Keep()  # type: ignore[no-untyped-call]

    async def send(self, **fields: Any) -> None:
        with contextlib.suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
            await self._call.write(pb.Heartbeat(**fields))

    async def reply(self) -> pb.HeartbeatReply:
        async with asyncio.timeout(5):
            answer = await self._call.read()
        assert answer is not grpc.aio.EOF, (await self._call.code(), await self._call.details())
        return answer

    async def status(self) -> tuple[grpc.StatusCode, str]:
        """How the stream ended."""
        async with asyncio.timeout(8):
            with contextlib.suppress(grpc.aio.AioRpcError):
                while await self._call.read() is not grpc.aio.EOF:
                    pass
            return await self._call.code(), await self._call.details()

    def cancel(self) -> None:
        self._call.cancel()


@contextlib.asynccontextmanager
async def stream(mesh: Mesh, principal: str, replica: Replica) -> AsyncIterator[Stream]:
    async with open_channel(replica.endpoint, mesh.identity(principal)) as channel:
        raw = Stream(channel)
        yield raw
        raw.cancel()


def said(node: str = "edge/tokyo", **fields: Any) -> dict[str, Any]:
    return {"node_id": node, "incarnation": "i-1", "healthy": True} | fields


def orca(**figures: float) -> bytes:
    report = OrcaLoadReport(application_utilization=figures.pop("utilisation", 0.5))
    for name, value in figures.items():
        report.named_metrics[f"tradewind.{name}"] = value
    return report.SerializeToString()


def edge_report(**reachable: bool) -> Report:
    views = {region: RegionView(up, 40.0 if up else None) for region, up in reachable.items()}
    return Report(healthy=True, addresses=("127.0.0.1:8080",), regions=views)


def core_report(draining: bool = False, healthy: bool = True) -> Report:
    load = orca(utilisation=0.75, tokens_per_s=120.0, running=3, waiting=1)
    return Report(healthy=healthy, draining=draining, orca=load)
