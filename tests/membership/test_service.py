"""Heartbeats over real sockets: who may send them, what they do, and what is refused."""

from __future__ import annotations

import asyncio
import contextlib

import grpc
import grpc.aio
import pytest

from control_plane.directives.observed import CoreReport, RegionSeen
from control_plane.membership.errors import Closing, Silent
from control_plane.membership.settings import MembershipSettings
from control_plane.store.memory import MemoryStore
from tests.control_plane.mesh import Mesh, until
from tests.membership.replicas import (
    QUICK,
    Stream,
    core_report,
    edge_report,
    node,
    orca,
    replica,
    said,
    stream,
)
from topology.wire.channel import open_channel

StatusCode = grpc.StatusCode


async def test_nodes_register_and_are_seen(mesh: Mesh) -> None:
    async with (
        replica(mesh, MemoryStore()) as here,
        node(mesh, "edge/tokyo", [here.endpoint], lambda: edge_report(singapore=True, dubai=False)),
        node(mesh, "core/singapore", [here.endpoint], core_report) as core,
    ):
        await until(lambda: len(here.registry.members) == 2)
        assert here.service.seen() == {
            "edge/tokyo": {"singapore": RegionSeen(True, 40.0), "dubai": RegionSeen(False)}
        }
        (report,) = here.service.cores().values()
        expected = CoreReport("core/singapore", "singapore", report.at_s, 0.75, 120.0, 3.0, 1.0)
        assert report == expected
        member = here.registry.members["core/singapore"]
        assert (member.role, member.name, member.healthy) == ("core", "singapore", True)
        await until(lambda: core.status.registered and core.status.lease)
        assert core.status.connected and not core.status.detail
        figures = {s.name: s.value for s in here.service.samples()}
        assert figures["tradewind_membership_registered"] == 2
        assert figures["tradewind_membership_registry_up"] == 1


async def test_who_closes_is_gone_at_once(mesh: Mesh) -> None:
    async with replica(mesh, MemoryStore(), MembershipSettings(ttl_s=60)) as here:
        async with node(mesh, "core/dubai.2", [here.endpoint], core_report):
            await until(lambda: "core/dubai.2" in here.registry.members)
            assert here.registry.members["core/dubai.2"].name == "dubai"
            assert here.service.cores()["core/dubai.2"].region == "dubai"
        await until(lambda: not here.registry.members, 2)
        assert not here.service.cores()


async def test_who_is_cut_off_stays_for_its_time_to_live(mesh: Mesh) -> None:
    store = MemoryStore()
    async with replica(mesh, store) as here:
        async with stream(mesh, "edge/tokyo", here) as raw:
            await raw.send(**said(regions=[{"region": "dubai", "reachable": True}]))
            await raw.reply()
            await until(lambda: "edge/tokyo" in here.registry.members)
        await asyncio.sleep(0.2)
        assert "edge/tokyo" in here.registry.members and here.service.seen()
        await until(lambda: not here.service.seen())

        def lapsed() -> bool:
            store.expire()
            return not here.registry.members

        await until(lapsed)


async def test_news_is_told_before_the_next_turn(mesh: Mesh) -> None:
    reach = {"singapore": True}
    slow = MembershipSettings(ttl_s=60, interval_s=15)
    async with (
        replica(mesh, MemoryStore(), slow) as here,
        node(mesh, "edge/tokyo", [here.endpoint], lambda: edge_report(**reach)) as client,
    ):
        await until(lambda: client.status.registered)
        reach["singapore"] = False
        await until(lambda: not here.service.seen()["edge/tokyo"]["singapore"].reachable, 3)


async def test_a_core_that_drains_says_so(mesh: Mesh) -> None:
    draining: list[bool] = []
    async with (
        replica(mesh, MemoryStore()) as here,
        node(mesh, "core/dubai", [here.endpoint], lambda: core_report(bool(draining))),
    ):
        await until(lambda: here.registry.members and here.registry.members["core/dubai"].healthy)
        draining.append(True)
        await until(lambda: not here.registry.members["core/dubai"].healthy)
        assert here.service.cores()["core/dubai"].draining


async def test_the_next_replica_takes_over_with_the_same_lease(mesh: Mesh) -> None:
    store = MemoryStore()
    async with replica(mesh, store) as first, replica(mesh, store) as second:
        endpoints = [first.endpoint, second.endpoint]
        async with node(mesh, "core/dubai", endpoints, core_report) as client:
            await until(lambda: client.status.registered)
            status = client.status
            member = first.registry.members["core/dubai"]
            serving = first if status.endpoint == first.endpoint else second
            other = second if serving is first else first
            await serving.kill()
            await until(lambda: client.status.endpoint == other.endpoint)
            await until(lambda: client.status.registered)
            assert client.status.lease == status.lease
            assert other.registry.members["core/dubai"] == member
            assert other.service.cores()


async def test_without_the_store_heartbeats_are_answered_and_say_so(mesh: Mesh) -> None:
    store = MemoryStore()
    async with (
        replica(mesh, store) as here,
        node(mesh, "core/dubai", [here.endpoint], core_report) as client,
    ):
        await until(lambda: client.status.registered)
        store.cut("the store burns")
        await until(lambda: not client.status.registered)
        await until(lambda: "burns" in client.status.detail)
        assert client.status.connected and here.service.cores()
        assert "core/dubai" in here.registry.members
        store.mend()
        await until(lambda: client.status.registered)


async def test_a_replica_without_a_store_takes_a_newcomer(mesh: Mesh) -> None:
    store = MemoryStore()
    store.cut()
    async with (
        replica(mesh, store) as here,
        node(mesh, "core/dubai", [here.endpoint], core_report) as client,
    ):
        await until(lambda: client.status.connected)
        assert not client.status.registered and here.service.cores()
        store.mend()
        await until(lambda: client.status.registered and "core/dubai" in here.registry.members)


async def test_a_wiped_store_is_filled_again(mesh: Mesh) -> None:
    store = MemoryStore()
    async with (
        replica(mesh, store) as here,
        node(mesh, "core/dubai", [here.endpoint], core_report) as client,
    ):
        await until(lambda: client.status.registered)
        await store.revoke(client.status.lease)
        await until(lambda: not here.registry.members)
        await until(lambda: "core/dubai" in here.registry.members)


@pytest.mark.parametrize(
    ("principal", "fields", "code", "words"),
    [
        ("edge/tokyo", {"node": "edge/london"}, StatusCode.PERMISSION_DENIED, "certificate"),
        ("edge/tokyo", {"node": "edge/tokyo/x"}, StatusCode.PERMISSION_DENIED, "worker"),
        ("edge/tokyo", {"node": "edge/tokyo/64"}, StatusCode.PERMISSION_DENIED, "0 to 63"),
        ("edge/tokyo", {"node": "edge/tokyo/01"}, StatusCode.PERMISSION_DENIED, "worker"),
        ("edge/tokyo", {"node": ""}, StatusCode.PERMISSION_DENIED, "node"),
        ("dns/ns1", {"node": "dns/ns1"}, StatusCode.PERMISSION_DENIED, "roles: core, edge"),
        ("admin/root", {"node": "admin/root"}, StatusCode.PERMISSION_DENIED, "no heartbeats"),
        ("edge/tokyo", {"incarnation": ""}, StatusCode.INVALID_ARGUMENT, "incarnation"),
        ("edge/tokyo", {"incarnation": "i" * 65}, StatusCode.INVALID_ARGUMENT, "incarnation"),
        ("edge/tokyo", {"version": "v" * 101}, StatusCode.INVALID_ARGUMENT, "version"),
        ("edge/tokyo", {"lease": -1}, StatusCode.INVALID_ARGUMENT, "lease"),
        ("edge/tokyo", {"addresses": ["a"] * 17}, StatusCode.INVALID_ARGUMENT, "addresses: 17"),
        ("edge/tokyo", {"addresses": ["a" * 301]}, StatusCode.INVALID_ARGUMENT, "300"),
        ("edge/tokyo", {"regions": [{"region": ""}]}, StatusCode.INVALID_ARGUMENT, "names"),
        (
            "edge/tokyo",
            {"regions": [{"region": f"r{n}"} for n in range(513)]},
            StatusCode.INVALID_ARGUMENT,
            "regions: 513",
        ),
        (
            "edge/tokyo",
            {"regions": [{"region": "dubai", "rtt_ms": float("nan")}]},
            StatusCode.INVALID_ARGUMENT,
            "rtt_ms",
        ),
        ("core/dubai", {"orca": b"\xff" * 9}, StatusCode.INVALID_ARGUMENT, "OrcaLoadReport"),
        ("core/dubai", {"orca": b"x" * 20_000}, StatusCode.INVALID_ARGUMENT, "20000 bytes"),
        (
            "core/dubai",
            {"orca": orca(utilisation=float("inf"))},
            StatusCode.INVALID_ARGUMENT,
            "figures",
        ),
        (
            "core/dubai",
            {"orca": orca(tokens_per_s=-1.0)},
            StatusCode.INVALID_ARGUMENT,
            "figures",
        ),
    ],
)
async def test_what_cannot_be_is_refused(
    mesh: Mesh, principal: str, fields: dict[str, object], code: StatusCode, words: str
) -> None:
    async with replica(mesh, MemoryStore()) as here, stream(mesh, principal, here) as raw:
        await raw.send(**said(str(fields.pop("node", principal)), **fields))
        found, details = await raw.status()
        assert found is code and words in details
        assert not here.registry.members and not here.service.seen() and not here.service.cores()


async def test_all_mistakes_are_told_together(mesh: Mesh) -> None:
    async with replica(mesh, MemoryStore()) as here, stream(mesh, "core/dubai", here) as raw:
        await raw.send(**said("core/dubai", incarnation="", version="v" * 200, orca=b"\xff"))
        _, details = await raw.status()
        assert all(word in details for word in ("incarnation", "version", "orca"))


async def test_noise_ends_its_own_stream_alone(mesh: Mesh) -> None:
    async with (
        replica(mesh, MemoryStore()) as here,
        node(mesh, "core/dubai", [here.endpoint], core_report) as client,
        open_channel(here.endpoint, mesh.identity("edge/tokyo")) as channel,
    ):
        await until(lambda: client.status.registered)
        for noise in (b"\xff" * 100, b"", b"\x0a\xff\xff\xff\xff\x0f"):
            call = channel.stream_stream("/tradewind.v1.Membership/Keep")()
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await call.write(noise)
            async with asyncio.timeout(5):
                assert await call.code() is not StatusCode.OK
        assert client.status.registered and set(here.registry.members) == {"core/dubai"}


async def test_regions_that_do_not_exist_are_named_and_ignored(mesh: Mesh) -> None:
    async with replica(mesh, MemoryStore()) as here:
        async with stream(mesh, "edge/tokyo", here) as raw:
            names = ["dubai", *(f"atlantis-{n}" for n in range(8))]
            await raw.send(**said(regions=[{"region": n, "reachable": True} for n in names]))
            detail = (await raw.reply()).detail
            assert "no such regions: atlantis-0" in detail and "3 more" in detail
            assert here.service.seen() == {"edge/tokyo": {"dubai": RegionSeen(True)}}
        async with stream(mesh, "core/atlantis.1", here) as raw:
            await raw.send(**said("core/atlantis.1"))
            assert "no Region" in (await raw.reply()).detail


async def test_a_node_has_one_stream(mesh: Mesh) -> None:
    async with (
        replica(mesh, MemoryStore()) as here,
        stream(mesh, "edge/tokyo", here) as first,
        stream(mesh, "edge/tokyo", here) as second,
    ):
        await first.send(**said())
        await first.reply()
        await second.send(**said(incarnation="i-2"))
        await second.reply()
        code, details = await first.status()
        assert code is StatusCode.ABORTED and "another stream" in details
        await until(lambda: here.registry.members["edge/tokyo"].incarnation == "i-2")
        await second.send(**said(incarnation="i-2"))
        assert (await second.reply()).registered


async def test_a_stream_is_of_one_incarnation(mesh: Mesh) -> None:
    async with replica(mesh, MemoryStore()) as here, stream(mesh, "edge/tokyo", here) as raw:
        await raw.send(**said())
        await raw.reply()
        await raw.send(**said(incarnation="i-2"))
        code, details = await raw.status()
        assert code is StatusCode.INVALID_ARGUMENT and "the same" in details


async def test_a_node_cannot_take_over_a_lease_that_is_not_its_own(mesh: Mesh) -> None:
    store = MemoryStore()
    election = await store.grant(60)
    async with replica(mesh, store) as here, stream(mesh, "edge/tokyo", here) as raw:
        await raw.send(**said(lease=election))
        await raw.reply()
        await until(lambda: "edge/tokyo" in here.registry.members)
        await raw.send(**said(lease=election, leaving=True))
        assert (await raw.reply()).lease != election
        await until(lambda: not here.registry.members)
        assert await store.keep_alive(election) == 60


async def test_a_flood_and_silence_end_the_stream(mesh: Mesh) -> None:
    async with replica(mesh, MemoryStore()) as here:
        async with stream(mesh, "edge/tokyo", here) as raw:
            with pytest.raises((AssertionError, grpc.aio.AioRpcError)):  # it has ended
                for _ in range(60):
                    await raw.send(**said())
                    await raw.reply()
            code, details = await raw.status()
            assert code is StatusCode.RESOURCE_EXHAUSTED and "heartbeats per second" in details
        async with stream(mesh, "edge/tokyo", here) as raw:
            await raw.send(**said())
            await raw.reply()
            code, details = await raw.status()
            assert code is StatusCode.DEADLINE_EXCEEDED and "2 s" in details
        await until(lambda: not here.registry.members or not here.service.seen())


async def test_a_node_gone_wild_harms_itself_alone(mesh: Mesh) -> None:
    async with (
        replica(mesh, MemoryStore()) as here,
        open_channel(here.endpoint, mesh.identity("edge/wild")) as channel,
    ):
        codes = []
        for _ in range(160):
            raw = Stream(channel)
            await raw.send(**said("edge/wild", leaving=True))
            codes.append(await raw.status())
        refused = [details for code, details in codes if code is StatusCode.RESOURCE_EXHAUSTED]
        assert refused and "edge/wild opens more than" in refused[0]
        async with node(mesh, "core/dubai", [here.endpoint], core_report) as client:
            await until(lambda: client.status.registered, 3)


async def test_nodes_are_bounded_and_come_less_often_when_many(mesh: Mesh) -> None:
    settings = MembershipSettings(ttl_s=30, interval_s=0.2, max_nodes=2, heartbeats_per_s=1)
    async with (
        replica(mesh, MemoryStore(), settings) as here,
        stream(mesh, "edge/tokyo", here) as one,
        stream(mesh, "edge/london", here) as two,
        stream(mesh, "core/dubai", here) as three,
    ):
        for raw, name in ((one, "edge/tokyo"), (two, "edge/london")):
            await raw.send(**said(name))
            await raw.reply()
        await until(lambda: len(here.registry.members) == 2)
        await one.send(**said("edge/tokyo"))
        assert (await one.reply()).interval_s == 2.0
        await three.send(**said("core/dubai"))
        code, details = await three.status()
        assert code is StatusCode.RESOURCE_EXHAUSTED and "2 nodes" in details


async def test_closing_tells_the_nodes(mesh: Mesh) -> None:
    async with replica(mesh, MemoryStore(), QUICK) as here, stream(mesh, "edge/tokyo", here) as raw:
        await raw.send(**said())
        await raw.reply()
        await here.service.close()
        code, _ = await raw.status()
        assert code is StatusCode.UNAVAILABLE


async def test_closing_meets_a_stream_that_is_just_ending(mesh: Mesh) -> None:
    async with replica(mesh, MemoryStore(), QUICK) as here, stream(mesh, "edge/tokyo", here) as raw:
        await raw.send(**said())
        await raw.reply()
        ending = here.service._streams["edge/tokyo"]
        assert ending.patience is not None
        ending.end(Silent("nothing was heard"))
        while not ending.patience.expired():
            await asyncio.sleep(0)
        ending.end(Closing("this replica is shutting down"))
        assert (await raw.status())[0] is StatusCode.DEADLINE_EXCEEDED
