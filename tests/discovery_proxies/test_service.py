"""Proxies' streams over real sockets: who may come, what they are told, how they are bounded."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest
from envoy.service.discovery.v3 import ads_pb2_grpc
from envoy.service.discovery.v3 import discovery_pb2 as discovery

from control_plane.discovery.proxies.service import REQUESTS_BURST, STREAMS_PER_NODE
from control_plane.discovery.proxies.translation import CLUSTER, ENDPOINTS, LISTENER, ROUTES
from control_plane.discovery.server import DiscoverySettings
from control_plane.service import Replica
from control_plane.store.memory import MemoryStore
from runtime.clock import SystemClock
from tests.control_plane.mesh import Mesh, at, serving, until
from tests.discovery_proxies.worlds import drain, put, resource, resources, tenant
from topology.wire.channel import open_channel
from topology.wire.gen.tradewind.v1 import admin_pb2, admin_pb2_grpc

NODE = "proxy/gateway"
V2 = "type.googleapis.com/envoy.api.v2.ClusterLoadAssignment"


class Stream:
    """A raw stream, for peers that do not do as they should."""

    def __init__(self, call: Any, *, delta: bool) -> None:
        self.call = call
        self._delta = delta

    async def ask(
        self,
        url: str,
        *names: str,
        node_id: str = NODE,
        answer: Any = None,
        refusal: str = "",
        **metadata: str,
    ) -> None:
        request: Any
        if self._delta:
            request = discovery.DeltaDiscoveryRequest(resource_names_subscribe=names)
        else:
            request = discovery.DiscoveryRequest(resource_names=names)
        request.type_url = url
        request.node.id = node_id
        request.node.user_agent_name = "envoy"
        request.node.metadata.update(metadata)
        if answer is not None:
            request.response_nonce = answer.nonce
        if refusal:
            request.error_detail.message = refusal
        await self.call.write(request)

    async def read(self) -> Any:
        async with asyncio.timeout(8):
            return await self.call.read()

    async def end(self) -> tuple[grpc.StatusCode, str]:
        """How the stream ends, reading on until it does."""
        async with asyncio.timeout(8):
            with contextlib.suppress(grpc.aio.AioRpcError):
                while await self.call.read():
                    pass
            return await self.call.code(), await self.call.details()


@asynccontextmanager
async def stream(
    mesh: Mesh, replica: Replica, principal: str = NODE, *, delta: bool = True
) -> AsyncIterator[Stream]:
    async with open_channel(at(replica), mesh.identity(principal)) as channel:
        stub: Any = ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel)
        method = stub.DeltaAggregatedResources if delta else stub.StreamAggregatedResources
        yield Stream(method(), delta=delta)


@asynccontextmanager
async def made(mesh: Mesh, **settings: int) -> AsyncIterator[tuple[Replica, MemoryStore]]:
    store = MemoryStore(SystemClock())
    await put(store, *resources())
    bounds = DiscoverySettings(**({"debounce_ms": 10} | settings))
    async with serving(mesh, store, discovery=bounds) as replica:
        yield replica, store


both = pytest.mark.parametrize("delta", [True, False], ids=["delta", "state-of-the-world"])


@both
@pytest.mark.parametrize(
    ("principal", "node_id"),
    [
        ("proxy/gateway", "proxy/other"),
        ("proxy/gateway", ""),
        ("viewer/eve", "proxy/gateway"),
        ("control/cp-9", "proxy/gateway"),
        ("core/singapore-1", "proxy/gateway"),
    ],
)
async def test_strangers_are_refused(mesh: Mesh, principal: str, node_id: str, delta: bool) -> None:
    async with made(mesh) as (replica, _), stream(mesh, replica, principal, delta=delta) as peer:
        await peer.ask(CLUSTER, node_id=node_id)
        code, details = await peer.end()
        assert code is grpc.StatusCode.PERMISSION_DENIED
        assert details
        assert list(replica.proxies.sessions) == []


async def test_an_edge_has_no_state_of_the_world(mesh: Mesh) -> None:
    async with made(mesh) as (replica, _), stream(mesh, replica, "edge/tokyo", delta=False) as peer:
        await peer.ask(CLUSTER, node_id="edge/tokyo")
        code, details = await peer.end()
        assert code is grpc.StatusCode.PERMISSION_DENIED
        assert "delta" in details


@both
async def test_nonsense_in_the_metadata_is_refused(mesh: Mesh, delta: bool) -> None:
    async with made(mesh) as (replica, _), stream(mesh, replica, delta=delta) as peer:
        await peer.ask(CLUSTER, listen="nonsense")
        code, details = await peer.end()
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "node.metadata.listen" in details


@both
async def test_an_old_version_is_told_that_its_types_are_not_there(mesh: Mesh, delta: bool) -> None:
    async with made(mesh) as (replica, _), stream(mesh, replica, delta=delta) as peer:
        await peer.ask(V2, "a-cluster")
        response = await peer.read()
        assert response.type_url == V2
        assert not response.resources
        (session,) = replica.proxies.sessions
        assert list(session.unsupported) == [V2]


async def test_the_old_service_is_not_there(mesh: Mesh) -> None:
    old = "/envoy.service.discovery.v2.AggregatedDiscoveryService/StreamAggregatedResources"
    async with (
        made(mesh) as (replica, _),
        open_channel(at(replica), mesh.identity(NODE)) as channel,
        asyncio.timeout(5),
    ):
        method: Any = channel.stream_stream
        assert await method(old)().code() is grpc.StatusCode.UNIMPLEMENTED


@both
async def test_who_never_acknowledges_loses_its_stream(mesh: Mesh, delta: bool) -> None:
    async with (
        made(mesh, ack_timeout_ms=100) as (replica, store),
        stream(mesh, replica, delta=delta) as peer,
    ):
        await peer.ask(CLUSTER)
        await peer.read()
        for percent in (10, 20, 30):  # nothing queues up behind the answer that is owed
            await put(store, drain("singapore", percent))
        code, details = await peer.end()
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "ACK" in details
        (session,) = replica.proxies.sessions
        assert not session.connected
        assert session.acked_revision == 0


async def test_who_never_reads_loses_its_stream(mesh: Mesh) -> None:
    # Megabytes of routes: more than anybody has room for on the way.
    held = {"regions": ["frankfurt"], "context_tokens": 2048}
    models = [resource("Model", f"model-{i}", **held) for i in range(100)]
    tenants = [tenant(f"tenant-{i}") for i in range(900)]
    async with made(mesh, ack_timeout_ms=300) as (replica, store):
        for start in range(0, 1_000, 100):
            await put(store, *[*models, *tenants][start : start + 100])
        await until(lambda: len(replica.catalog.view.snapshot.tenants) > 900)
        async with stream(mesh, replica) as peer:
            await peer.ask(ROUTES, "tradewind")
            await until(lambda: list(replica.proxies.sessions))
            await until(lambda: not any(s.connected for s in replica.proxies.sessions))


async def test_who_says_nothing_loses_its_stream(mesh: Mesh) -> None:
    async with (
        made(mesh, first_request_timeout_ms=100) as (replica, _),
        stream(mesh, replica, delta=False) as peer,
    ):
        code, _ = await peer.end()
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_node_may_have_several_streams_but_not_any_number(mesh: Mesh) -> None:
    """gRPC opens one for each name that it dials."""
    async with (
        made(mesh) as (replica, _),
        open_channel(at(replica), mesh.identity(NODE)) as channel,
    ):
        stub: Any = ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel)
        peers = [
            Stream(stub.StreamAggregatedResources(), delta=False)
            for _ in range(STREAMS_PER_NODE + 1)
        ]
        for peer in peers[:-1]:
            await peer.ask(CLUSTER)
            await peer.read()
        await peers[-1].ask(CLUSTER)
        code, details = await peers[-1].end()
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "/<instance>" in details
        # One line per node in the status.
        assert [s.node_id for s in replica.proxies.sessions] == [NODE]


@both
async def test_one_certificate_has_a_bounded_number_of_streams(mesh: Mesh, delta: bool) -> None:
    """However many instances it names."""
    bounds = {"streams_per_proxy": 2, "arrivals_per_node_per_s": 1_000}
    async with made(mesh, **bounds) as (replica, _), AsyncExitStack() as stack:
        peers = [
            await stack.enter_async_context(stream(mesh, replica, delta=delta)) for _ in range(3)
        ]
        for number, peer in enumerate(peers[:2]):
            await peer.ask(CLUSTER, node_id=f"{NODE}/{number}")
            await peer.read()
        await peers[2].ask(CLUSTER, node_id=f"{NODE}/2")
        code, details = await peers[2].end()
        assert (code, "2 streams open" in details) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
        async with stream(mesh, replica, "proxy/other", delta=delta) as other:
            await other.ask(CLUSTER, node_id="proxy/other")
            assert await other.read(), "another certificate is not held up"
        peers[0].call.cancel()
        await until(lambda: sum(s.connected for s in replica.proxies.sessions) == 1)
        async with stream(mesh, replica, delta=delta) as next_one:
            await next_one.ask(CLUSTER, node_id=f"{NODE}/3")
            assert await next_one.read()


@both
async def test_a_proxy_that_asks_without_end_loses_its_stream(mesh: Mesh, delta: bool) -> None:
    async with made(mesh) as (replica, _), stream(mesh, replica, delta=delta) as peer:
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            for _ in range(REQUESTS_BURST + 500):
                await peer.ask(ROUTES, "tradewind")
        code, _ = await peer.end()
        # gRPC may lose the status of a call that ends while its client is still writing.
        assert code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL)
        await until(lambda: not [s for s in replica.proxies.sessions if s.connected])


@both
async def test_status_shows_what_a_proxy_refused(mesh: Mesh, delta: bool) -> None:
    async with made(mesh) as (replica, _), stream(mesh, replica, delta=delta) as peer:
        await peer.ask(LISTENER)
        response = await peer.read()
        await peer.ask(LISTENER, answer=response, refusal="cannot bind")
        await until(lambda: [s for s in replica.proxies.sessions if s.nack])
        async with open_channel(at(replica), mesh.identity("viewer/vera")) as channel:
            stub: Any = admin_pb2_grpc.AdminStub(channel)  # type: ignore[no-untyped-call]
            status = await stub.Status(admin_pb2.StatusRequest())
        (shown,) = status.nodes
        assert (shown.id, shown.role, shown.connected) == (NODE, "proxy", True)
        assert shown.nack_reason == "Listener: cannot bind"
        assert shown.nack_revision > 0
        assert shown.acked_revision == 0


async def test_an_override_that_expires_is_taken_back_without_a_change(mesh: Mesh) -> None:
    async with made(mesh) as (replica, store), stream(mesh, replica) as peer:
        ends = SystemClock().wall() + 0.6
        await put(store, drain("frankfurt", 100, expires_s=ends))
        await until(lambda: replica.catalog.view.snapshot.overrides)
        await asyncio.sleep(0.05)  # longer than the debounce
        await peer.ask(ENDPOINTS, "standard:frankfurt")
        response = await peer.read()
        assert not response.resources[0].resource.value.count(b"127.0.0.2")
        await peer.ask(ENDPOINTS, answer=response)
        response = await peer.read()
        assert response.resources[0].resource.value.count(b"127.0.0.2")
        assert SystemClock().wall() >= ends


async def test_without_a_store_proxies_are_served_what_is_known(mesh: Mesh) -> None:
    """A new proxy, while the store is away."""
    async with made(mesh) as (replica, store):
        await until(lambda: replica.catalog.view.snapshot.regions)
        store.cut()
        async with stream(mesh, replica, delta=False) as peer:
            await peer.ask(ROUTES, "tradewind")
            assert (await peer.read()).resources


async def test_without_any_configuration_nobody_is_told_that_there_is_none(mesh: Mesh) -> None:
    store = MemoryStore(SystemClock())
    store.cut()
    async with serving(mesh, store) as replica, stream(mesh, replica, delta=False) as peer:
        await peer.ask(CLUSTER)
        code, _ = await peer.end()
        assert code is grpc.StatusCode.UNAVAILABLE
