"""Discovery over real sockets: replicas on one store, nodes that follow them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
from envoy.service.discovery.v3 import ads_pb2_grpc
from envoy.service.discovery.v3 import discovery_pb2 as discovery

from control_plane.changes.plan import Wanted
from control_plane.discovery.server import DiscoverySettings
from control_plane.pki import create_ca, issue
from control_plane.store.memory import MemoryStore
from runtime.clock import ManualClock, SystemClock
from runtime.errors import TradewindError
from runtime.identity import Identity, Principal
from tests.control_plane.mesh import Mesh, at, node, region, serving, until, world
from topology.resources import Key
from topology.snapshot import Snapshot
from topology.wire import codec, last_good
from topology.wire.channel import open_channel
from topology.wire.subscription import Subscription

WORLD = Wanted(puts=tuple(world()))


async def test_a_node_follows_every_change(mesh: Mesh, tmp_path: Path) -> None:
    seen: list[int] = []
    store = MemoryStore()
    kept = tmp_path / "edge.snapshot"
    async with (
        serving(mesh, store) as replica,
        node(mesh, "edge/tokyo", [at(replica)], kept, lambda s: seen.append(len(s))) as edge,
    ):
        await until(lambda: edge.status.connected)
        assert len(edge.snapshot) == 0
        done = await replica.changes.apply(WORLD, "operator/alice")
        await until(lambda: edge.snapshot.revision == done.revision)
        assert len(edge.snapshot) == len(world())
        assert edge.snapshot.get(Key("Region", "singapore")).author == "operator/alice"
        await replica.changes.apply(Wanted(removes=(Key("Tenant", "globex"),)), "operator/alice")
        await until(lambda: edge.snapshot.get(Key("Tenant", "globex")) is None)
        [session] = replica.discovery.sessions
        await until(lambda: session.acked_revision == edge.snapshot.revision)
        assert not edge.status.stale
        assert edge.status.replica == "cp-1"
    assert seen == [10, 9]
    assert last_good.load(kept).revision == edge.snapshot.revision


async def test_a_node_starts_with_no_control_plane_at_all(mesh: Mesh, tmp_path: Path) -> None:
    kept = tmp_path / "edge.snapshot"
    last_good.save(kept, Snapshot.build(7, world()))
    async with node(mesh, "edge/tokyo", ["127.0.0.1:1"], kept) as edge:
        assert edge.snapshot.revision == 7
        await until(lambda: "UNAVAILABLE" in edge.status.detail)
        assert edge.status.stale
        assert not edge.status.connected


async def test_a_damaged_file_is_ignored(mesh: Mesh, tmp_path: Path) -> None:
    kept = tmp_path / "edge.snapshot"
    last_good.save(kept, Snapshot.build(7, world()))
    kept.write_bytes(kept.read_bytes().replace(b"singapore", b"singapora", 1))
    async with serving(mesh, MemoryStore()) as replica:
        await replica.changes.apply(WORLD, "operator/alice")
        async with node(mesh, "edge/tokyo", [at(replica)], kept) as edge:
            assert edge.snapshot.revision == 0
            await until(lambda: len(edge.snapshot) == len(world()))


async def test_a_refused_snapshot_keeps_the_old_one_and_says_why(mesh: Mesh) -> None:
    def picky(snapshot: Snapshot) -> None:
        if "dubai" in snapshot.regions:
            raise TradewindError("this edge cannot reach dubai")

    async with serving(mesh, MemoryStore()) as replica:
        first = await replica.changes.apply(WORLD, "operator/alice")
        async with node(mesh, "edge/tokyo", [at(replica)], None, picky) as edge:
            await until(lambda: edge.snapshot.revision == first.revision)
            second = await replica.changes.apply(Wanted(puts=(region("dubai", "AE"),)), "o/a")
            [session] = replica.discovery.sessions
            await until(lambda: session.nack is not None)
            assert session.nack.revision == second.revision
            assert session.nack.reason == "this edge cannot reach dubai"
            assert session.acked_revision == edge.snapshot.revision == first.revision
            assert edge.status.connected
            assert "dubai" in edge.status.refused
            # The next revision is offered again, from what the node really holds.
            await replica.changes.apply(Wanted(removes=(Key("Region", "dubai"),)), "o/a")
            await until(lambda: edge.snapshot.revision > second.revision)
            await until(lambda: session.nack is None)
            assert edge.status.refused == ""


async def test_reconnecting_sends_only_what_changed(mesh: Mesh, tmp_path: Path) -> None:
    kept = tmp_path / "edge.snapshot"
    store = MemoryStore()
    async with serving(mesh, store) as replica:
        await replica.changes.apply(WORLD, "o/a")
        async with node(mesh, "edge/tokyo", [at(replica)], kept) as edge:
            await until(lambda: len(edge.snapshot) == len(world()))
        changed = Wanted(
            puts=(region("singapore", "SG", capacity_tokens_per_s=7),),
            removes=(Key("Tenant", "globex"),),
        )
        done = await replica.changes.apply(changed, "o/a")
        await until(lambda: replica.discovery.revision == done.revision)
        async with open_channel(at(replica), mesh.identity("edge/tokyo")) as channel:
            held = last_good.load(kept)
            response = await first_response(channel, hello("edge/tokyo", held))
        assert [entry.name for entry in response.resources] == ["Region/singapore"]
        assert list(response.removed_resources) == ["Tenant/globex"]
        assert response.system_version_info == str(done.revision)
        async with node(mesh, "edge/tokyo", [at(replica)], kept) as edge:
            await until(lambda: edge.snapshot.revision == done.revision)
            assert edge.snapshot.get(Key("Tenant", "globex")) is None
            assert edge.snapshot.regions["singapore"].capacity_tokens_per_s == 7


async def test_fail_over_to_another_replica(mesh: Mesh) -> None:
    store = MemoryStore()
    async with serving(mesh, store, "cp-1") as one:
        await one.changes.apply(WORLD, "o/a")
        async with serving(mesh, store, "cp-2") as two:
            endpoints = ["127.0.0.1:1", at(two), at(one)]
            async with node(mesh, "core/singapore", endpoints) as core:
                await until(lambda: core.status.connected)
                first = core.status.replica
                gone = two if first == "cp-2" else one
                await gone.discovery.close()
                await gone._server.stop(0)
                await until(lambda: core.status.connected and core.status.replica != first)
                assert len(core.snapshot) == len(world())


async def test_two_replicas_converge(mesh: Mesh) -> None:
    store = MemoryStore()
    async with serving(mesh, store, "cp-1") as one, serving(mesh, store, "cp-2") as two:
        for number in range(5):
            await (one if number % 2 else two).changes.apply(
                Wanted(puts=(region(f"r{number}"),)), "o/a"
            )
        await until(
            lambda: one.catalog.view.snapshot.revision == two.catalog.view.snapshot.revision
        )
        assert one.catalog.view.snapshot.encode() == two.catalog.view.snapshot.encode()


async def test_without_the_store_new_nodes_are_served_and_told(mesh: Mesh, tmp_path: Path) -> None:
    store = MemoryStore()
    async with serving(mesh, store, data_dir=tmp_path) as replica:
        await replica.changes.apply(WORLD, "o/a")
        async with node(mesh, "edge/tokyo", [at(replica)]) as old:
            await until(lambda: len(old.snapshot) > 0)
            store.cut()
            await until(lambda: old.status.stale)
            assert old.status.connected
            async with node(mesh, "edge/london", [at(replica)]) as new:
                await until(lambda: len(new.snapshot) == len(world()))
                assert new.status.stale
                store.mend()
                await until(lambda: not new.status.stale and not old.status.stale)
    store = MemoryStore()
    store.cut()
    async with serving(mesh, store, data_dir=tmp_path) as restarted:
        assert restarted.catalog.view.stale_since_s is not None
        async with node(mesh, "edge/tokyo", [at(restarted)]) as edge:
            await until(lambda: len(edge.snapshot) == len(world()))
            assert edge.status.stale


async def test_a_stale_replica_sends_nobody_back_in_time(mesh: Mesh, tmp_path: Path) -> None:
    store = MemoryStore()
    async with serving(mesh, store, "cp-1", tmp_path / "1") as replica:
        await replica.changes.apply(WORLD, "o/a")
    await replica.catalog.close()
    cut = MemoryStore()
    cut.cut()
    newer = tmp_path / "edge.snapshot"
    last_good.save(newer, Snapshot.build(1000, [*world(), region("dubai", "AE")]))
    async with (
        serving(mesh, cut, "cp-1", tmp_path / "1") as stale,
        node(mesh, "edge/tokyo", [at(stale)], newer) as edge,
    ):
        await until(lambda: edge.status.connected)
        await asyncio.sleep(0.1)
        assert edge.status.stale
        assert edge.snapshot.revision == 1000


async def test_a_replica_without_anything_sends_nodes_elsewhere(mesh: Mesh) -> None:
    store = MemoryStore()
    store.cut()
    async with (
        serving(mesh, store) as empty,
        node(mesh, "edge/tokyo", [at(empty)]) as edge,
    ):
        await until(lambda: "no configuration yet" in edge.status.detail)


async def test_a_second_stream_of_a_node_replaces_the_first(mesh: Mesh) -> None:
    async with serving(mesh, MemoryStore()) as replica:
        done = await replica.changes.apply(WORLD, "o/a")
        await until(lambda: replica.discovery.revision == done.revision)
        async with open_channel(at(replica), mesh.identity("edge/tokyo")) as channel:
            first = subscribe(channel)
            await first.write(hello("edge/tokyo"))
            await first.read()
            second = subscribe(channel)
            await second.write(hello("edge/tokyo"))
            assert (await second.read()).resources
            end = await ended(first)
            assert end.code() is grpc.StatusCode.ABORTED
            assert "another stream" in end.details()
            worker = subscribe(channel)
            await worker.write(hello("edge/tokyo/2"))
            assert (await worker.read()).resources
            assert len([s for s in replica.discovery.sessions if s.connected]) == 2


async def test_two_processes_of_one_node_do_not_chase_each_other(mesh: Mesh) -> None:
    async with serving(mesh, MemoryStore()) as replica:
        await replica.changes.apply(WORLD, "o/a")
        async with (
            node(mesh, "edge/tokyo", [at(replica)]) as one,
            node(mesh, "edge/tokyo", [at(replica)]) as two,
        ):
            await until(lambda: "ABORTED" in one.status.detail + two.status.detail)
            assert len(one.snapshot) == len(two.snapshot) == len(world())
            [session] = replica.discovery.sessions
            await asyncio.sleep(0.05)
            assert [session] == list(replica.discovery.sessions)


@pytest.mark.parametrize(
    ("principal", "node_id"),
    [
        ("operator/alice", "operator/alice"),
        ("control/cp-2", "control/cp-2"),
        ("edge/tokyo", "edge/london"),
        ("edge/tokyo", "edge/tokyo2"),
        ("edge/tokyo", "edge/tokyo/a/b"),
        ("edge/tokyo", "edge/tokyo/"),
        ("edge/tokyo", ""),
        ("edge/tokyo", "core/tokyo"),
    ],
)
async def test_who_may_not_subscribe(mesh: Mesh, principal: str, node_id: str) -> None:
    async with (
        serving(mesh, MemoryStore()) as replica,
        open_channel(at(replica), mesh.identity(principal)) as channel,
    ):
        call = subscribe(channel)
        await call.write(hello(node_id))
        assert (await ended(call)).code() is grpc.StatusCode.PERMISSION_DENIED


async def test_another_ca_is_refused_in_the_handshake(mesh: Mesh, tmp_path: Path) -> None:
    create_ca(tmp_path / "ca")
    files = issue(tmp_path / "ca", Principal("edge", "tokyo"), tmp_path / "edge")
    stranger = Identity.load(files)
    # It trusts our CA, as anybody may who has the file; ours must not trust it.
    trusting = Identity(
        stranger.principal,
        stranger.certificate_pem,
        stranger.key_pem,
        mesh.identity("edge/tokyo").ca_pem,
        files,
    )
    async with (
        serving(mesh, MemoryStore()) as replica,
        open_channel(at(replica), trusting) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await first_response(channel, hello("edge/tokyo"))
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_an_expired_certificate_is_refused(mesh: Mesh, tmp_path: Path) -> None:
    past = ManualClock(wall=SystemClock().wall() - 10 * 86_400)
    principal = Principal("edge", "tokyo")
    files = issue(mesh.folder / "ca", principal, tmp_path, days=5, clock=past)
    async with (
        serving(mesh, MemoryStore()) as replica,
        open_channel(at(replica), Identity.load(files)) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await first_response(channel, hello("edge/tokyo"))
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_an_edge_cannot_pose_as_a_control_plane(mesh: Mesh) -> None:
    server = grpc.aio.server()
    edge = mesh.identity("edge/mallory")
    credentials = grpc.ssl_server_credentials(
        [(edge.key_pem, edge.certificate_pem)], edge.ca_pem, require_client_auth=True
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        async with open_channel(f"127.0.0.1:{port}", mesh.identity("edge/tokyo")) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await first_response(channel, hello("edge/tokyo"))
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    finally:
        await server.stop(0)


async def test_an_unknown_type_is_answered_and_noted(mesh: Mesh) -> None:
    async with serving(mesh, MemoryStore()) as replica:
        done = await replica.changes.apply(WORLD, "o/a")
        await until(lambda: replica.discovery.revision == done.revision)
        async with open_channel(at(replica), mesh.identity("edge/tokyo")) as channel:
            call = subscribe(channel)
            await call.write(hello("edge/tokyo"))
            response = await call.read()
            await call.write(ack(response))
            listener = discovery.DeltaDiscoveryRequest(type_url="type.googleapis.com/x.Listener")
            listener.resource_names_subscribe.append("one")
            await call.write(listener)
            answer = await call.read()
            assert answer.type_url == listener.type_url
            assert list(answer.removed_resources) == ["one"]
            [session] = replica.discovery.sessions
            assert list(session.unsupported) == [listener.type_url]
            named = discovery.DeltaDiscoveryRequest(type_url=codec.TYPE_URL)
            named.resource_names_subscribe.append("Region/singapore")
            await call.write(named)
            assert (await ended(call)).code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_burst_of_changes_is_coalesced(mesh: Mesh) -> None:
    settings = DiscoverySettings(debounce_ms=100)
    async with serving(mesh, MemoryStore(), discovery=settings) as replica:
        seen: list[int] = []
        async with node(
            mesh, "edge/tokyo", [at(replica)], None, lambda s: seen.append(s.revision)
        ) as edge:
            await until(lambda: edge.status.connected)
            await asyncio.sleep(0.35)  # what its start set off is over
            for number in range(40):
                done = await replica.changes.apply(Wanted(puts=(region(f"r{number}"),)), "o/a")
            await until(lambda: edge.snapshot.revision == done.revision)
            assert len(edge.snapshot) == 40
            assert 2 <= len(seen) <= 10


async def test_a_node_that_acknowledges_nothing_loses_its_stream(mesh: Mesh) -> None:
    settings = DiscoverySettings(ack_timeout_ms=200, first_request_timeout_ms=200)
    async with (
        serving(mesh, MemoryStore(), discovery=settings) as replica,
        open_channel(at(replica), mesh.identity("edge/tokyo")) as channel,
    ):
        silent = subscribe(channel)
        assert (await ended(silent)).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        call = subscribe(channel)
        await call.write(hello("edge/tokyo"))
        await call.read()
        assert (await ended(call)).code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_two_hundred_nodes(mesh: Mesh) -> None:
    settings = DiscoverySettings(admission_burst=50, admissions_per_s=400)
    async with serving(mesh, MemoryStore(), discovery=settings) as replica:
        await replica.changes.apply(WORLD, "o/a")
        identity = mesh.identity("edge/tokyo")
        async with open_channel(at(replica), identity) as channel:
            calls = [subscribe(channel) for _ in range(200)]
            followers = [
                asyncio.create_task(follow(call, f"edge/tokyo/{index}"))
                for index, call in enumerate(calls)
            ]
            await until(
                lambda: sum(s.acked_revision > 0 for s in replica.discovery.sessions) == 200
            )
            done = await replica.changes.apply(Wanted(puts=(region("dubai", "AE"),)), "o/a")
            await until(
                lambda: all(s.acked_revision == done.revision for s in replica.discovery.sessions)
            )
            for follower in followers:
                follower.cancel()
            await asyncio.gather(*followers, return_exceptions=True)


async def follow(call: object, node_id: str) -> None:
    await call.write(hello(node_id))
    while (response := await call.read()) is not grpc.aio.EOF:
        await call.write(ack(response))


def subscribe(channel: grpc.aio.Channel) -> grpc.aio.StreamStreamCall:
    return ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel).DeltaAggregatedResources()


def hello(node_id: str, held: Snapshot | None = None) -> discovery.DeltaDiscoveryRequest:
    return Subscription(node_id, held).open()


def ack(response: discovery.DeltaDiscoveryResponse) -> discovery.DeltaDiscoveryRequest:
    return discovery.DeltaDiscoveryRequest(
        type_url=response.type_url, response_nonce=response.nonce
    )


async def first_response(
    channel: grpc.aio.Channel, request: discovery.DeltaDiscoveryRequest
) -> discovery.DeltaDiscoveryResponse:
    call = subscribe(channel)
    await call.write(request)
    response = await call.read()
    call.cancel()
    return response


async def ended(call: grpc.aio.StreamStreamCall) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as end:
        await call.read()
    return end.value
