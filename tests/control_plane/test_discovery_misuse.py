"""Peers that misbehave: each costs bounded work, and the others notice nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from envoy.service.discovery.v3 import discovery_pb2 as discovery

from control_plane.admission import Shares
from control_plane.changes.plan import Wanted
from control_plane.discovery.server import DiscoverySettings
from control_plane.discovery.session import CATCH_UP_S
from control_plane.service import Replica
from control_plane.store.memory import MemoryStore
from tests.control_plane.mesh import Mesh, at, node, region, resource, serving, until, world
from tests.control_plane.test_discovery import ack, ended, hello, subscribe
from topology.snapshot import Snapshot
from topology.wire import codec
from topology.wire.channel import client_credentials, client_options, open_channel
from topology.wire.subscription import HELD_REVISION

WORLD = Wanted(puts=tuple(world()))
ADS = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"


@asynccontextmanager
async def running(mesh: Mesh, **settings: int) -> AsyncIterator[Replica]:
    """A replica with a world, and a well-behaved node that is still served in the end."""
    discovery_settings = DiscoverySettings(debounce_ms=20, **settings)
    async with serving(mesh, MemoryStore(), discovery=discovery_settings) as replica:
        done = await replica.changes.apply(WORLD, "o/a")
        async with node(mesh, "edge/good", [at(replica)]) as good:
            await until(lambda: good.snapshot.revision == done.revision)
            yield replica
            done = await replica.changes.apply(Wanted(puts=(region("last", "SG"),)), "o/a")
            await until(lambda: good.snapshot.revision == done.revision)
            assert good.status.connected


async def test_a_node_that_the_configuration_does_not_know(mesh: Mesh) -> None:
    """Its certificate is ours: it is served, and counts for itself alone."""
    async with running(mesh) as replica, node(mesh, "edge/nowhere", [at(replica)]) as stranger:
        await until(lambda: len(stranger.snapshot) == len(world()))


async def test_a_node_from_the_future_is_brought_back(mesh: Mesh) -> None:
    async with (
        running(mesh) as replica,
        open_channel(at(replica), mesh.identity("edge/tokyo")) as channel,
    ):
        call = subscribe(channel)
        request = hello("edge/tokyo", Snapshot.build(9, [region("elsewhere", "SG")]))
        request.node.metadata[HELD_REVISION] = "9" * 18
        await call.write(request)
        began = asyncio.get_running_loop().time()
        response = await call.read()
        assert asyncio.get_running_loop().time() - began > CATCH_UP_S / 2
        assert list(response.removed_resources) == ["Region/elsewhere"]
        assert len(response.resources) == len(world())


@pytest.mark.parametrize("revision", ["", "-1", "x", "9" * 400, "٣", "1e9"])
async def test_a_revision_that_is_none(mesh: Mesh, revision: str) -> None:
    async with (
        running(mesh) as replica,
        open_channel(at(replica), mesh.identity("edge/tokyo")) as channel,
    ):
        call = subscribe(channel)
        request = hello("edge/tokyo")
        request.node.metadata[HELD_REVISION] = revision
        request.initial_resource_versions["Region/singapore"] = "no version of ours"
        request.initial_resource_versions["\n"] = revision
        await call.write(request)
        response = await call.read()
        assert len(response.resources) == len(world())
        assert list(response.removed_resources) == ["\n"]


async def test_what_a_node_may_say_it_holds_is_bounded(mesh: Mesh) -> None:
    async with (
        running(mesh) as replica,
        open_channel(at(replica), mesh.identity("edge/tokyo")) as channel,
    ):
        call = subscribe(channel)
        request = hello("edge/tokyo")
        for number in range(100_001):
            request.initial_resource_versions[f"Region/r{number}"] = "1"
        await call.write(request)
        assert (await ended(call)).code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_ack_twice_and_acks_of_nothing_change_nothing(mesh: Mesh) -> None:
    async with (
        running(mesh) as replica,
        open_channel(at(replica), mesh.identity("edge/tokyo")) as channel,
    ):
        call = subscribe(channel)
        await call.write(hello("edge/tokyo"))
        first = await call.read()
        for _ in range(3):
            await call.write(ack(first))
        await call.write(
            discovery.DeltaDiscoveryRequest(type_url=codec.TYPE_URL, response_nonce="77.1")
        )
        refusal = ack(first)
        refusal.error_detail.message = "too late: it was acknowledged"
        await call.write(refusal)
        [session] = [s for s in replica.discovery.sessions if s.node_id == "edge/tokyo"]
        await until(lambda: session.acked_revision == replica.discovery.revision)
        done = await replica.changes.apply(Wanted(puts=(region("dubai", "AE"),)), "o/a")
        second = await call.read()
        assert second.system_version_info == str(done.revision)
        assert [entry.name for entry in second.resources] == ["Region/dubai"]
        await call.write(ack(first))  # the old one again
        await asyncio.sleep(0.05)
        assert session.acked_revision < done.revision
        assert session.nack is None
        await call.write(ack(second))
        await until(lambda: session.acked_revision == done.revision)


async def test_a_flood_of_requests_ends_the_stream(mesh: Mesh) -> None:
    async with (
        running(mesh) as replica,
        open_channel(at(replica), mesh.identity("edge/tokyo")) as channel,
    ):
        call = subscribe(channel)
        await call.write(hello("edge/tokyo"))
        response = await call.read()
        with pytest.raises((grpc.aio.AioRpcError, asyncio.InvalidStateError)):
            for _ in range(5_000):
                await call.write(ack(response))
        # What the node hears of it is up to its gRPC, which was writing.
        [session] = [s for s in replica.discovery.sessions if s.node_id == "edge/tokyo"]
        await until(lambda: not session.connected)
        refused = [s for s in replica.discovery.samples() if s.name.endswith("refused_total")]
        assert refused[0].value == 1


async def test_a_node_that_comes_again_and_again_leaves_room_for_others(mesh: Mesh) -> None:
    async with (
        running(mesh, streams_per_node=4, arrivals_per_node_per_s=1) as replica,
        open_channel(at(replica), mesh.identity("edge/tokyo")) as channel,
    ):
        details = []
        for _ in range(12):
            call = subscribe(channel)
            await call.write(hello("edge/tokyo"))
            try:
                await call.read()
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                details.append(error.details())
            call.cancel()
        assert len(details) >= 6
        assert "more than 1 streams a second" in details[0]


async def test_a_node_has_only_so_many_streams(mesh: Mesh) -> None:
    async with (
        running(mesh, streams_per_node=3, arrivals_per_node_per_s=100) as replica,
        open_channel(at(replica), mesh.identity("edge/tokyo")) as channel,
    ):
        calls = [subscribe(channel) for _ in range(4)]
        for number, call in enumerate(calls):
            await call.write(hello(f"edge/tokyo/{number}"))
            if number < 3:
                await call.read()
        refused = await ended(calls[3])
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "has 3 streams open" in refused.details()
        calls[0].cancel()
        await until(lambda: len([s for s in replica.discovery.sessions if s.connected]) == 3)
        again = subscribe(channel)
        await again.write(hello("edge/tokyo/9"))
        await again.read()


async def test_a_peer_that_reads_nothing_is_given_up(mesh: Mesh) -> None:
    """gRPC keeps what it cannot send as long as the connection lives: so much, and no more."""
    async with running(mesh, ack_timeout_ms=200) as replica:
        for part in range(14):
            wanted = Wanted(puts=tuple(large_tenant(part, n) for n in range(40)))
            await replica.changes.apply(wanted, "o/a")
        identity = mesh.identity("edge/tokyo")
        narrow = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_535)]
        async with grpc.aio.secure_channel(
            at(replica), client_credentials(identity), [*client_options(), *narrow]
        ) as channel:
            deaf = [subscribe(channel) for _ in range(4)]
            for number, call in enumerate(deaf):
                await call.write(hello(f"edge/tokyo/{number}"))
            remembered = lambda: [  # noqa: E731
                s for s in replica.discovery.sessions if s.node_id.startswith("edge/tokyo/")
            ]
            await until(lambda: len(remembered()) == 4)
            await until(lambda: not any(s.connected for s in remembered()))
            more = subscribe(channel)
            await more.write(hello("edge/tokyo/9"))
            refused = await ended(more)
            assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "does not read" in refused.details()
        # The connection is closed, and with it all of that ends.
        async with node(mesh, "edge/tokyo", [at(replica)]) as healed:
            await until(lambda: healed.status.connected)


def large_tenant(part: int, number: int) -> object:
    keys = [f"sha256:{part * 10_000 + number * 100 + k:064x}" for k in range(64)]
    return resource("Tenant", f"t{part}-{number}", api_keys=keys)


async def test_bytes_that_are_no_request(mesh: Mesh) -> None:
    async with (
        running(mesh) as replica,
        open_channel(at(replica), mesh.identity("edge/tokyo")) as channel,
    ):
        for junk in (b"\xff\xff\xff", b"\x00" * 100, b"\x0a\xff\xff\xff\xff\x0f"):
            call = channel.stream_stream(ADS)()
            await call.write(junk)
            with pytest.raises(grpc.aio.AioRpcError):
                await call.read()


async def test_more_than_a_request_may_weigh(mesh: Mesh) -> None:
    identity = mesh.identity("edge/tokyo")
    boundless = [o for o in client_options() if o[0] != "grpc.max_send_message_length"]
    async with (
        running(mesh) as replica,
        grpc.aio.secure_channel(at(replica), client_credentials(identity), boundless) as channel,
    ):
        call = channel.stream_stream(ADS)()
        with pytest.raises((grpc.aio.AioRpcError, asyncio.InvalidStateError)):
            await call.write(b"\x0a" + b"\x00" * (codec.MAX_REQUEST_BYTES + 1))
            await call.read()


async def test_types_without_end(mesh: Mesh) -> None:
    async with (
        running(mesh) as replica,
        open_channel(at(replica), mesh.identity("edge/tokyo")) as channel,
    ):
        call = subscribe(channel)
        await call.write(hello("edge/tokyo"))
        await call.write(ack(await call.read()))
        for number in range(9):
            await call.write(discovery.DeltaDiscoveryRequest(type_url=f"x/{number}"))
        with pytest.raises(grpc.aio.AioRpcError) as end:
            while True:
                await call.read()
        assert end.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_shares_are_given_back() -> None:
    shares = Shares(streams_max=2, arrivals_per_s=1000.0, ending_max=1)
    assert [shares.arrive("edge/a", 1.0) for _ in range(2)] == ["", ""]
    assert "2 streams open" in shares.arrive("edge/a", 2.0)
    assert shares.arrive("edge/b", 2.0) == ""
    shares.leave("edge/a")
    with shares.ending("edge/a"):
        assert "does not read" in shares.arrive("edge/a", 3.0)
    assert shares.arrive("edge/a", 4.0) == ""
    shares.leave("edge/a")
    shares.leave("edge/a")
    shares.leave("edge/b")
    assert not shares._streams
    assert not shares._ending
