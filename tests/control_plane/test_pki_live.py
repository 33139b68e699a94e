"""A replica, an edge and a core while their certificates and their CA are replaced.

Nothing is restarted: the ADS streams and a token stream that run at the beginning run to the
end, and whoever connects meanwhile gets in, unless its certificate is of a CA that was retired.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from random import Random

import grpc
import httpx
import pytest
from envoy.service.discovery.v3 import ads_pb2_grpc

from control_plane.changes.plan import Wanted
from control_plane.pki import identity_files, issue
from control_plane.pki.rotation import Rotation, find
from control_plane.service import Replica
from control_plane.store.memory import MemoryStore
from edge_node.server import EdgeWorker
from edge_node.settings import EdgeSettings
from region_core.engine.sim import SimSettings
from region_core.process import Core, make_engine
from region_core.settings import CoreSettings, Listen
from runtime.clock import SystemClock
from runtime.identity import Identity, IdentityFiles, Principal
from runtime.identity_watch import IdentityWatch
from tests.control_plane.mesh import Mesh, at, node, serving, until
from tests.edge_node.worlds import ACME, free_port, key_hash
from topology.overlay.tunnel import Tunnel
from topology.resources import Resource, parse
from topology.wire.ads_client import AdsSettings
from topology.wire.channel import open_channel

CLOCK = SystemClock()
MODEL = "smol"
TOKENS = 300
STEP_MS = 15.0  # so the answer takes 4.5 s


class World:
    """All three processes, in this one, each with its own sockets."""

    def __init__(self, mesh: Mesh, replica: Replica, edge: EdgeWorker, core: Core) -> None:
        self.mesh = mesh
        self.replica = replica
        self.edge = edge
        self.core = core
        self.url = ""

    @property
    def watches(self) -> list[IdentityWatch]:
        return [self.replica.identities, self.edge.identities, self.core.identities]

    def rotate(self, phase: str = "") -> None:
        held, broken = find([self.mesh.folder])
        assert not broken
        rotation = Rotation(self.mesh.folder / "ca", held, CLOCK, settle_s=0.0)
        steps = list(rotation.phase(phase) if phase else rotation.renew())
        assert len(steps) == len(held)
        assert not [step.error for step in steps if step.error]

    async def read_anew(self) -> None:
        """What each process does by itself every few seconds."""
        for watch in self.watches:
            await watch.look()
            files = watch.current.files
            await until(partial(_up_to_date, files, watch))
            assert watch.problem == ""

    def streams(self) -> list[float]:
        """Since when each node's ADS stream is up, as the replica knows."""
        return sorted(s.since_s for s in self.replica.discovery.sessions if s.connected)

    async def connects(self, identity: Identity) -> bool:
        """Whether `identity` gets a call through to the replica, on a new connection."""
        async with open_channel(at(self.replica), identity) as channel:
            call = ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel).DeltaAggregatedResources()
            try:
                async with asyncio.timeout(5):
                    await call.initial_metadata()
                    return not call.done()  # it waits for a request
            except (grpc.aio.AioRpcError, TimeoutError):
                return False
            finally:
                call.cancel()

    async def reaches(self, identity: Identity) -> bool:
        """Whether `identity` gets to the core, on a new connection."""
        assert self.core.overlay is not None
        tunnel = Tunnel(
            "singapore", f"127.0.0.1:{self.core.overlay.port}", identity, CLOCK, rng=Random(4)
        )
        tunnel.start()
        try:
            for _ in range(150):
                if tunnel.connected or "refused" in tunnel.status.reason:
                    break
                await asyncio.sleep(0.02)
            return tunnel.connected
        finally:
            await tunnel.close()


def _up_to_date(files: IdentityFiles, watch: IdentityWatch) -> bool:
    held = watch.current
    on_disk = (files.certificate.read_bytes(), files.ca.read_bytes())
    return (held.certificate_pem, held.ca_pem) == on_disk


def resources(port: int, edge_port: int) -> tuple[Resource, ...]:
    place = {"city": "X", "latitude": 1.0, "longitude": 2.0, "jurisdiction": "SG"}
    region = place | {"cores": [f"127.0.0.1:{port}"], "capacity_tokens_per_s": 9}
    documents = (
        ("Region", "singapore", region),
        ("EdgeSite", "tokyo", place | {"addresses": ["127.0.0.1"], "port": edge_port}),
        ("Model", MODEL, {"regions": ["singapore"], "context_tokens": 2048}),
        ("Route", "all", {"models": ["*"], "tenants": ["*"], "regions": ["singapore"]}),
        ("Tenant", "acme", {"api_keys": [key_hash(ACME)]}),
    )  # fmt: skip
    return tuple(parse({"kind": k, "name": n, "spec": s}, n) for k, n, s in documents)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    mesh = Mesh(tmp_path)
    sim = SimSettings(step_ms=STEP_MS, answer_tokens_min=TOKENS, answer_tokens_max=TOKENS)
    async with serving(mesh, MemoryStore()) as replica:
        replicas = (at(replica),)
        core_settings = CoreSettings(
            region="singapore", identity=mesh.files("core/singapore"), overlay=Listen(),
            engine="sim", model=MODEL, sim=sim, control_plane=replicas, shutdown_grace_ms=100,
        )  # fmt: skip
        core = Core(core_settings, make_engine(core_settings), CLOCK, Random(2))
        await core.start()
        assert core.overlay is not None
        port = free_port()
        edge_settings = EdgeSettings(
            name="tokyo", identity=mesh.files("edge/tokyo"), control_plane=replicas,
            state_dir=tmp_path / "state", port=port, shutdown_grace_ms=100,
            discovery=AdsSettings(backoff_min_ms=20, backoff_max_ms=200),
        )  # fmt: skip
        wanted = Wanted(puts=resources(core.overlay.port, port))
        await replica.changes.apply(wanted, "operator/alice")
        edge = EdgeWorker(edge_settings, 0, CLOCK, Random(3))
        await edge.start()
        made = World(mesh, replica, edge, core)
        made.url = f"http://127.0.0.1:{port}/v1/chat/completions"
        await until(lambda: edge.app.serving.ready and len(made.streams()) == 2)
        await asyncio.wait_for(edge.tunnels.all_connected(), 5)
        try:
            yield made
        finally:
            await edge.close()
            await core.close()


class TokenStream:
    """One chat that is being answered."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.events = 0
        self.text = ""
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        body = {
            "model": MODEL, "stream": True, "max_tokens": TOKENS, "temperature": 1.0,
            "messages": [{"role": "user", "content": "Where to?"}],
        }  # fmt: skip
        headers = {"authorization": f"Bearer {ACME}"}
        async with (
            httpx.AsyncClient(timeout=30) as client,
            client.stream("POST", self._url, json=body, headers=headers) as reply,
        ):
            assert reply.status_code == 200
            async for line in reply.aiter_lines():
                self.events += line.startswith("data:")
                self.text += line

    async def flows(self) -> None:
        """Return once more of it has come."""
        seen = self.events
        await until(lambda: self.events > seen or self.task.done())


async def test_streams_survive_new_certificates_and_a_new_ca(world: World) -> None:
    folder = world.mesh.directory("edge/tokyo")
    late = Identity.load(identity_files(folder))  # whoever never reads what is renewed
    streams = world.streams()
    tokens = TokenStream(world.url)
    await tokens.flows()
    for phase in ("", "trust", "reissue"):
        world.rotate(phase)
        if phase == "trust":
            late = Identity.load(identity_files(folder))
        # Some have read the new files and some have not: everybody still gets to everybody.
        for watch in (None, *world.watches):
            if watch is not None:
                await watch.look()
            for identity in (late, world.mesh.identity("edge/tokyo")):
                assert await world.connects(identity), (phase, watch)
                assert await world.reaches(identity), (phase, watch)
        await tokens.flows()
    world.rotate("retire")
    await world.read_anew()
    assert not await world.connects(late)
    assert not await world.reaches(late)
    assert await world.connects(world.edge.identities.current)
    assert await world.reaches(world.edge.identities.current)
    assert not tokens.task.done(), "the test took longer than the stream it watches"
    await asyncio.wait_for(tokens.task, 20)
    assert "[DONE]" in tokens.text
    assert '"error"' not in tokens.text
    assert world.streams() == streams
    async with node(world.mesh, "dns/ns1", [at(world.replica)]) as dns:
        await until(lambda: dns.status.connected)


async def test_clients_reconnect_with_what_was_renewed(world: World) -> None:
    for phase in ("trust", "reissue", "retire"):
        world.rotate(phase)
        await world.read_anew()
    before = world.streams()
    # Their streams end; the tunnel is opened anew.
    for session in list(world.replica.discovery._streams.values()):
        session.end(None)
    await until(lambda: len(world.streams()) == 2 and min(world.streams()) > max(before))
    # And a tunnel that is opened anew shows the new certificate too.
    tunnel = world.edge.tunnels._roads["singapore"].direct.tunnel
    assert tunnel is not None
    assert tunnel._connection is not None
    dials = tunnel.status.connects
    tunnel._connection.close("cut")
    await until(lambda: tunnel.status.connects > dials and tunnel.connected)


async def test_a_wrong_role_does_not_pose_as_another(world: World) -> None:
    """What lies in an edge's folder may be anything: the replica's files become an edge's."""
    folder = world.mesh.directory("control/cp-1")
    issue(world.mesh.folder / "ca", Principal("edge", "tokyo"), folder)
    for _ in range(2):
        await world.replica.identities.look()
    assert "is for edge/tokyo now" in world.replica.identities.problem
    assert await world.connects(world.mesh.identity("edge/tokyo"))
    assert str(world.replica.identities.current.principal) == "control/cp-1"


async def test_certificates_that_expire_in_use_end_no_stream(world: World, tmp_path: Path) -> None:
    short = tmp_path / "short"
    issue(world.mesh.folder / "ca", Principal("dns", "ns2"), short, days=2.5 / 86_400)
    identity = Identity.load(identity_files(short))
    async with open_channel(at(world.replica), identity) as channel:
        call = ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel).DeltaAggregatedResources()
        await call.initial_metadata()
        await asyncio.sleep(3.0)
        assert not call.done()
        assert not await world.connects(identity)
        call.cancel()
