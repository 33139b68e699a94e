"""`explain` agrees with what requests then do: a real edge that follows discovery, real cores."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
import yaml

from control_plane import keys
from control_plane.admin.client import AdminClient
from control_plane.admin.service import AdminService
from control_plane.admin.status_sources import StatusSources
from control_plane.catalog import Catalog
from control_plane.changes.apply import Changes
from control_plane.changes.plan import Wanted
from control_plane.directives import state as states
from control_plane.directives.known import Directives
from control_plane.directives.observed import EdgeReport, Observed, RegionSeen
from control_plane.directives.state import Drain, State, Verdict
from control_plane.discovery.server import DiscoveryServer, DiscoverySettings
from control_plane.geodns.places import open_locator
from control_plane.membership.leases import LeaseRegistry
from control_plane.membership.service import MembershipService
from control_plane.store.base import Put
from control_plane.store.memory import MemoryStore
from edge_node.server import EdgeWorker
from edge_node.settings import EdgeSettings
from runtime.clock import SystemClock
from tests.control_plane.mesh import Mesh, at, region, resource, serving, until
from tests.control_plane.mesh import world as mesh_world
from tests.edge_node.test_paths_live import Wire
from tests.edge_node.worlds import free_port, key_hash
from topology.overlay.tunnel import TunnelSettings
from topology.resources import Resource
from topology.routing import RegionView
from topology.wire.channel import open_channel, server_credentials, server_options
from topology.wire.gen.tradewind.v1 import admin_pb2 as pb
from topology.wire.gen.tradewind.v1 import admin_pb2_grpc
from topology.wire.membership_client import MembershipClient, Report

NAMES = {"singapore": "SG", "frankfurt": "EU", "dubai": "AE"}
KEYS = {name: f"sk-{name}-0123456789" for name in ("acme", "eurobank", "gulf", "lion")}
RESIDENCY = {"gulf": ("SG", "AE"), "lion": ("SG",)}
VIP, EU = "vip:singapore>frankfurt>dubai", "standard:frankfurt"
ASKED = 332


class World:
    """A store, discovery and the admin API, without a director: the test is the director."""

    def __init__(self, folder: Path, relays: bool = False) -> None:
        self.folder = folder
        self.relays = relays  # every region relays to every other one
        self.wire: Wire | None = None  # on the straight way to singapore
        self.mesh = Mesh(folder / "mesh")
        self.ports = {name: free_port() for name in NAMES}
        self.http = free_port()
        self.store = MemoryStore(SystemClock())
        self.number = 0
        self.edge: EdgeWorker
        self.port = 0

    async def start(self, stack: AsyncExitStack) -> None:
        clock = SystemClock()
        if self.relays:
            self.wire = Wire(self.ports["singapore"])
            await self.wire.start()
            stack.callback(self.wire.close)
        catalog = Catalog(self.store, None, clock, Random(1))
        directives = Directives(self.store, None, Random(2))
        self.changes = Changes(self.store, catalog, clock, "cp-1")
        settings = DiscoverySettings(debounce_ms=10)
        discovery = DiscoveryServer(catalog, "cp-1", clock, settings, directives)
        registry = LeaseRegistry(self.store, clock, Random(4), 10.0)
        self.membership = MembershipService(registry, clock, regions=lambda: NAMES)
        sources = StatusSources(
            directives=directives,
            observe=self._observe,
            paths=self.membership.paths if self.relays else None,
        )
        locator = open_locator(None, None, ())
        admin = AdminService(
            "cp-1", self.store, catalog, self.changes, discovery, locator, clock, sources
        )
        server = grpc.aio.server(options=server_options())
        discovery.add_to(server)
        self.membership.add_to(server)
        admin_pb2_grpc.add_AdminServicer_to_server(admin, server)  # type: ignore[no-untyped-call]
        credentials = server_credentials(self.mesh.identity("control/cp-1"))
        self.port = server.add_secure_port("127.0.0.1:0", credentials)
        catalog.start()
        directives.start()
        discovery.start()
        registry.start()
        self.membership.start()
        await server.start()
        for close in (
            catalog.close, directives.close, registry.close, lambda: server.stop(0),
            discovery.close, self.membership.close,
        ):  # fmt: skip
            stack.push_async_callback(close)
        for name in NAMES:
            await self._start_core(name, stack)
        await self.apply(*self.documents())
        await self._start_edge(stack)

    def documents(self) -> list[Resource]:
        everything = {"models": ["*"], "tenants": ["*"], "regions": list(NAMES)}
        return [
            *(region(n, j, cores=[f"127.0.0.1:{self.ports[n]}"]) for n, j in NAMES.items()),
            resource(
                "EdgeSite", "london", city="London", latitude=51.5, longitude=-0.1,
                jurisdiction="GB", addresses=["127.0.0.1"],
            ),
            resource("Model", "small", regions=list(NAMES), context_tokens=2048),
            # On loopback all are equally near; the order says who is first.
            resource("Route", "all", prefer="ordered", **everything),
            resource("Tenant", "acme", tier="vip", api_keys=[key_hash(KEYS["acme"])]),
            resource(
                "Tenant", "eurobank", residency=["EU"], api_keys=[key_hash(KEYS["eurobank"])]
            ),
            *(self.links() if self.wire is not None else ()),
        ]  # fmt: skip

    def links(self) -> list[Resource]:
        """The straight way to singapore over a wire, and relays wherever there may be one."""
        assert self.wire is not None
        return [
            # However busy this machine is: straight while that is up, and no request twice.
            resource(
                "Policy", "default", paths={"better_by_ms": 1_000}, retries={"hedge": False}
            ),
            resource(
                "Link", "straight", source="EdgeSite/london", target="Region/singapore", rtt_ms=1,
                address=f"127.0.0.1:{self.wire.port}",
            ),
            *(
                resource(
                    "Link", f"{one}-{other}", source=f"Region/{one}", target=f"Region/{other}",
                    rtt_ms=1,
                )
                for one in NAMES for other in NAMES if one != other
            ),
            *(
                resource("Tenant", name, residency=list(lies), api_keys=[key_hash(KEYS[name])])
                for name, lies in RESIDENCY.items()
            ),
        ]  # fmt: skip

    async def _start_core(self, name: str, stack: AsyncExitStack) -> None:
        files = self.mesh.files(f"core/{name}")
        document = {
            "region": name,
            "identity": {k: str(getattr(files, k)) for k in ("certificate", "key", "ca")},
            "overlay": {"host": "127.0.0.1", "port": self.ports[name]},
            "engine": "sim",
            "sim": {"step_ms": 1},
            "model": "small",
            "control_plane": [f"127.0.0.1:{self.port}"] if self.relays else [],
        }
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(document))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "region_core", "run", "--settings", str(path),
            stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip

        async def kill() -> None:
            process.kill()
            await process.wait()

        stack.push_async_callback(kill)

    async def _start_edge(self, stack: AsyncExitStack) -> None:
        settings = EdgeSettings(
            name="london",
            identity=self.mesh.files("edge/london"),
            control_plane=(f"127.0.0.1:{self.port}",),
            state_dir=self.folder,
            port=self.http,
            shutdown_grace_ms=500,
            # A core that a busy machine lets wait is not gone.
            overlay=TunnelSettings(silent_after_ms=1000),
        )
        self.edge = EdgeWorker(settings, 0, SystemClock(), Random(3))
        await self.edge.start()
        stack.push_async_callback(self.edge.close)
        await asyncio.wait_for(self.edge.tunnels.all_connected(), 20)

    def ways(self) -> dict[str, bool]:
        """Relay -> whether the way through it to singapore is up, as the control plane heard."""
        told = self.membership.paths().get("edge/london")
        return {way.relay: way.up for way in told.paths.get("singapore", ())} if told else {}

    def _observe(self) -> Observed:
        """As heartbeats tell it."""
        views = self.edge.tunnels.views() if hasattr(self, "edge") else {}
        seen = {name: RegionSeen(view.reachable, view.rtt_ms) for name, view in views.items()}
        report = EdgeReport("edge/london", "london", 0.0, {}, seen, seen_at_s=1.0)
        return Observed(0.0, {report.node: report})

    async def apply(self, *puts: Resource) -> None:
        wanted = Wanted(puts=puts, force=("residency", "last-region", "many", "capacity"))
        revision = (await self.changes.apply(wanted, "admin/test")).revision
        if hasattr(self, "edge"):
            await until(lambda: self.edge.app.serving.snapshot.revision >= revision)

    async def direct(self, **what: Any) -> None:
        self.number += 1
        state = State(term=1, number=self.number, **what)
        put = Put(keys.DIRECTOR_STATE, states.encode(state))
        await self.store.transact([], [put])
        choice = self.edge.app.serving.choice
        await until(lambda: choice.directive.number == self.number)

    async def explained(self, tenant: str) -> pb.ExplainResponse:
        identity = self.mesh.identity("viewer/ada")
        async with open_channel(f"127.0.0.1:{self.port}", identity) as channel:
            stub = admin_pb2_grpc.AdminStub(channel)  # type: ignore[no-untyped-call]
            request = pb.ExplainRequest(edge="london", tenant=tenant, model="small")
            answer: pb.ExplainResponse = await stub.Explain(request)
            return answer

    async def done(self, tenant: str) -> Counter[str]:
        """Where `ASKED` requests went; `refused` counts 503s. `paths`: which ways they took."""
        found: Counter[str] = Counter()
        self.paths: Counter[str] = Counter()
        headers = {"authorization": f"Bearer {KEYS[tenant]}", "cache-control": "no-store"}
        body = {"model": "small", "messages": [{"role": "user", "content": "?"}], "max_tokens": 1}

        async def some(client: httpx.AsyncClient) -> None:
            for _ in range(ASKED // 4):
                url = f"http://127.0.0.1:{self.http}/v1/chat/completions"
                reply = await client.post(url, json=body, headers=headers)
                assert reply.status_code in (200, 503), reply.text
                found[reply.headers.get("x-tradewind-region", "refused")] += 1
                if reply.status_code == 200:
                    self.paths[reply.headers["x-tradewind-path"]] += 1

        async with httpx.AsyncClient(timeout=20) as client:
            await asyncio.gather(*(some(client) for _ in range(4)))
        return found

    async def compare(self, tenant: str) -> dict[str, float]:
        """What `explain` says of each region, after it was compared with what requests do."""
        answer = await self.explained(tenant)
        said = {r.name: r.share for r in answer.regions if not r.excluded}
        if all(share < 0 for share in said.values()):
            said = {r.name: float(r.chosen) for r in answer.regions}
        done = await self.done(tenant)
        for name in NAMES:
            part = done[name] / ASKED
            # Four standard deviations of as many draws.
            assert part == pytest.approx(said.get(name, 0.0), abs=0.11), (said, done)
            if not said.get(name):
                assert not done[name]
        assert done["refused"] / ASKED == pytest.approx(1.0 - sum(said.values()), abs=0.11)
        return said


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        world = World(tmp_path)
        await world.start(stack)
        yield world


def override(name: str, percent: float, **spec: Any) -> Resource:
    return resource(
        "Override", name, region=name, action="drain", reason="test", percent=percent, **spec
    )


async def test_explain_agrees_with_what_requests_then_do(world: World) -> None:
    assert await world.compare("acme") == {"singapore": 1.0, "frankfurt": 0.0, "dubai": 0.0}
    assert (await world.compare("eurobank"))["frankfurt"] == 1.0

    shares = {"london": {VIP: {"singapore": 0.5, "dubai": 0.3, "frankfurt": 0.2}}}
    await world.direct(shares=shares)
    said = await world.compare("acme")
    assert said == pytest.approx({"singapore": 0.5, "dubai": 0.3, "frankfurt": 0.2})
    answer = await world.explained("acme")
    assert answer.demand_class == VIP
    assert "by directive 1 of term 1" in answer.notes

    await world.apply(override("singapore", 80))
    assert (await world.compare("acme"))["singapore"] == pytest.approx(0.2)

    down = {"dubai": Verdict(False, 0.0, "most say so")}
    await world.direct(shares=shares, verdicts=down)
    said = await world.compare("acme")
    assert said == pytest.approx({"singapore": 0.2, "frankfurt": 0.8})
    excluded = {r.name: r.why for r in (await world.explained("acme")).regions if r.excluded}
    assert excluded["dubai"].startswith("down: ")

    # A paced drain of a tenant's only region: as far as it has come, requests are refused.
    await world.apply(override("frankfurt", 100, over_s=600))
    await world.direct(
        drains={"frankfurt": Drain("frankfurt", 40.0, 100.0, 0.0, override_revision=1_000)}
    )
    said = await world.compare("eurobank")
    assert said == {"frankfurt": pytest.approx(0.6)}
    whys = {r.name: r.why for r in (await world.explained("eurobank")).regions}
    assert "drained by 40% on its way to 100%: test" in whys["frankfurt"]
    assert "residency" in whys["singapore"]


async def test_explain_agrees_on_the_ways_too(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        world = World(tmp_path, relays=True)
        await world.start(stack)
        assert world.wire is not None
        whole = {"": True, "frankfurt": True, "dubai": True}
        await until(lambda: world.ways() == whole, 30)
        for tenant in ("acme", "gulf", "lion"):
            assert (await world.compare(tenant))["singapore"] == 1.0
            assert (await world.explained(tenant)).path == "direct"
            assert set(world.paths) == {"direct"}

        world.wire.cut = True
        await until(lambda: world.ways() == {"": False, "frankfurt": True, "dubai": True}, 30)
        # The relays are about as good, and the edge settles on one some seconds after it began.
        for _ in range(3):
            assert (await world.compare("acme"))["singapore"] == 1.0
            used = (await world.explained("acme")).path
            if set(world.paths) == {used}:
                break
        assert set(world.paths) == {used}
        assert used in ("via frankfurt", "via dubai")
        whys = {r.name: r.why for r in (await world.explained("acme")).regions}
        assert "straight is " in whys["singapore"]

        # Of the two relays, the one in the tenant's residency; whoever may take none is refused.
        assert (await world.compare("gulf"))["singapore"] == 1.0
        assert (await world.explained("gulf")).path == "via dubai"
        assert set(world.paths) == {"via dubai"}
        assert not any((await world.compare("lion")).values())
        answer = await world.explained("lion")
        whys = {r.name: r.why for r in answer.regions}
        assert "only through a relay outside the tenant's residency" in whys["singapore"]
        assert answer.refusal
        assert not world.paths


class Shared(MemoryStore):
    """One store under two replicas."""

    async def close(self) -> None:
        return


async def test_the_replica_that_hears_the_edge_is_asked(tmp_path: Path) -> None:
    """An edge's load reports may go to one replica and its heartbeats to another: the first knows
    that there is such an edge, and not what it reaches."""
    mesh, store = Mesh(tmp_path / "mesh"), Shared()
    views = {"singapore": RegionView(False), "frankfurt": RegionView(True, 20.0)}
    async with serving(mesh, store, "cp-1") as one, serving(mesh, store, "cp-2") as other:
        await one.changes.apply(Wanted(puts=tuple(mesh_world())), "admin/test")
        heartbeats = MembershipClient(
            "edge/tokyo",
            [at(other)],
            lambda: mesh.identity("edge/tokyo"),
            lambda: Report(healthy=True, regions=views),
            SystemClock(),
            Random(3),
        )
        counted = EdgeReport("edge/tokyo", "tokyo", 1.0, {}, {"singapore": RegionSeen(True)})
        one.direction.loads.edges = lambda: {"edge/tokyo": counted}  # type: ignore[method-assign]
        heartbeats.start()
        try:
            await until(lambda: other.direction.observe().edges)
            await until(lambda: other.catalog.view.snapshot.regions)
            request = pb.ExplainRequest(edge="tokyo", tenant="acme", model="smol")
            identity = mesh.identity("viewer/ada")
            with AdminClient((at(one), at(other)), identity) as client:
                answer = await asyncio.to_thread(client.explain, request)
            assert answer.heard
            assert answer.region == "frankfurt"
            with AdminClient((at(one),), identity) as client:
                answer = await asyncio.to_thread(client.explain, request)
            assert not answer.heard
            assert any("distances are published ones" in note for note in answer.notes)
        finally:
            await heartbeats.close()
