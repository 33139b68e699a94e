"""The real Envoy behind a real replica: changes, drains, failures; no request is lost to any."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import msgspec
import pytest
from msgspec import Struct

from control_plane import keys
from control_plane.directives import state as states
from control_plane.directives.state import Verdict
from control_plane.service import Replica
from control_plane.store.base import Put
from control_plane.store.memory import MemoryStore
from runtime.clock import SystemClock
from tests.control_plane.mesh import Mesh, at, serving, until
from tests.discovery_proxies.backends import PIECES, Backend, GrpcBackend, Load, backends
from tests.discovery_proxies.envoy import bootstrap, envoy, free_port, listening
from tests.discovery_proxies.grpc_caller import ECHO
from tests.discovery_proxies.worlds import REGIONS, drain, put, resource, resources, tenant

pytestmark = pytest.mark.timeout(60)
NODE = "proxy/gateway"


class Shared(MemoryStore):
    """A store that outlives each of its replicas."""

    async def close(self) -> None:
        pass


class Scene(Struct):
    """A replica on a store, three regions, and an Envoy in front of them."""

    store: MemoryStore
    replica: Replica
    replica_stack: AsyncExitStack  # closing it ends the replica
    regions: dict[str, Backend]
    port: int
    client: httpx.AsyncClient

    def session(self) -> Any:
        (found,) = (s for s in self.replica.discovery.sessions if s.node_id == NODE)
        return found

    async def put(self, *args: Any, **kwargs: Any) -> None:
        """Change the store, and wait until Envoy has acknowledged what follows from it."""
        revision = await put(self.store, *args, **kwargs)
        await until(lambda: self.session().acked_revision >= revision)

    async def judge(self, region: str, *, up: bool) -> None:
        """As if the director had judged a region."""
        verdicts = {region: Verdict(up, SystemClock().wall(), "a test")}
        state = msgspec.structs.replace(self.replica.directives.state, verdicts=verdicts)
        await self.store.transact([], [Put(keys.DIRECTOR_STATE, states.encode(state))])

    async def ask(self, **headers: str) -> httpx.Response:
        named = {f"x-tradewind-{key}": value for key, value in headers.items()}
        return await self.client.get(f"http://127.0.0.1:{self.port}/v1/models", headers=named)


@asynccontextmanager
async def scene(
    folder: Path, mesh: Mesh, *, delta: bool, kind: Any = Backend, **metadata: str
) -> AsyncIterator[Scene]:
    port = free_port()
    store = MemoryStore(SystemClock())
    said = {"listen": f"127.0.0.1:{port}"} | metadata
    async with AsyncExitStack() as stack, backends(kind, *REGIONS) as regions:
        await put(store, *resources({name: b.endpoint for name, b in regions.items()}))
        replica_stack = await stack.enter_async_context(AsyncExitStack())
        replica = await replica_stack.enter_async_context(serving(mesh, store))
        document = bootstrap(mesh.files(NODE), [at(replica)], said, delta=delta, node_id=NODE)
        await stack.enter_async_context(envoy(document, folder))
        await listening(port)
        client = await stack.enter_async_context(httpx.AsyncClient(timeout=10, verify=False))
        yield Scene(store, replica, replica_stack, regions, port, client)


@pytest.fixture(params=[True, False], ids=["delta", "state-of-the-world"])
async def tokyo(request: Any, tmp_path: Path, mesh: Mesh) -> AsyncIterator[Scene]:
    async with scene(tmp_path, mesh, delta=request.param, edge="tokyo") as made:
        yield made


async def test_a_drain_in_part_then_whole_then_restored(tokyo: Scene) -> None:
    async with Load(tokyo.port, "acme") as load:
        assert set(await load.next(50)) == {"singapore"}
        await tokyo.put(drain("singapore", 30))
        await load.next(20)  # what was under way
        where = await load.next(400)
        assert where["singapore"] + where["dubai"] == where.total()
        assert 0.2 < where["dubai"] / where.total() < 0.4
        await tokyo.put(drain("singapore", 100))
        await load.next(20)
        assert set(await load.next(100)) == {"dubai"}
        await tokyo.put(remove=(drain("singapore"),))
        await load.next(20)
        assert set(await load.next(100)) == {"singapore"}
    assert load.failed == []


async def test_changes_of_configuration_lose_nothing(tokyo: Scene) -> None:
    """New tenants, models, routes: listeners, routes and clusters come and go under load."""
    async with Load(tokyo.port, "acme") as load:
        await tokyo.put(tenant("newcomer", tier="batch"), resource("Policy", "default", attempts=2))
        assert (await tokyo.ask(tenant="newcomer", model="smol")).text == "singapore"
        # The class of acme changes, and so the cluster that its requests go to.
        for tier in ("standard", "batch", "vip"):
            await tokyo.put(tenant("acme", tier=tier, models=["smol"]))
            await load.next(20)
        narrower = resource(
            "Route", "acme", models=["smol"], tenants=["acme"], regions=["dubai", "frankfurt"]
        )
        await tokyo.put(narrower)
        await load.next(20)
        assert set(await load.next(50)) == {"dubai"}
        await tokyo.put(remove=(narrower, tenant("newcomer")))
        await load.next(20)
        assert set(await load.next(50)) == {"singapore"}
        assert (await tokyo.ask(tenant="newcomer", model="smol")).status_code == 403
    assert load.failed == []


async def test_thousands_of_tenants(tokyo: Scene) -> None:
    many = [tenant(f"tenant-{i}", residency=["EU"] if i % 2 else None) for i in range(3_000)]
    for start in range(0, len(many), 100):
        await put(tokyo.store, *many[start : start + 100])
    await tokyo.put(drain("dubai", 1))
    assert (await tokyo.ask(tenant="tenant-2998", model="smol")).text == "singapore"
    assert (await tokyo.ask(tenant="tenant-2999", model="smol")).text == "frankfurt"
    assert (await tokyo.ask(tenant="tenant-3000", model="smol")).status_code == 403


async def test_residency_and_refusals(tokyo: Scene) -> None:
    for _ in range(20):
        assert (await tokyo.ask(tenant="eurobank", model="smol")).text == "frankfurt"
    assert (await tokyo.ask(tenant="eurobank")).text == "frankfurt"
    expected: list[tuple[Mapping[str, str], int, str]] = [
        ({}, 403, "tenant_required"),
        ({"model": "smol"}, 403, "tenant_required"),
        ({"tenant": ""}, 403, "tenant_unknown"),
        ({"tenant": "nobody", "model": "smol"}, 403, "tenant_unknown"),
        ({"tenant": "acme", "model": "nothing"}, 404, "model_not_found"),
        ({"tenant": "acme", "model": "euro"}, 403, "model_not_allowed"),
        ({"tenant": "globex"}, 400, "model_required"),
        ({"tenant": "homeless", "model": "smol"}, 403, "residency_not_satisfiable"),
    ]
    for headers, status, code in expected:
        answer = await tokyo.ask(**headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), headers
        assert answer.headers["content-type"] == "application/json"
    named_twice = [("x-tradewind-tenant", "acme"), ("x-tradewind-tenant", "eurobank")]
    answer = await tokyo.client.get(f"http://127.0.0.1:{tokyo.port}/", headers=named_twice)
    assert answer.status_code == 403
    # Its only region is drained: an error, and not another region.
    await tokyo.put(drain("frankfurt", 100))
    assert (await tokyo.ask(tenant="eurobank", model="smol")).status_code == 503
    assert {name for name, b in tokyo.regions.items() if b.served} == {"frankfurt"}


async def test_a_region_that_is_down_for_all_gets_none(tokyo: Scene) -> None:
    async with Load(tokyo.port, "acme") as load:
        for up, expected in ((False, "dubai"), (True, "singapore")):
            await tokyo.judge("singapore", up=up)
            async with asyncio.timeout(8):
                while set(await load.next(30)) != {expected}:
                    pass
            assert set(await load.next(100)) == {expected}
    assert load.failed == []


async def test_what_only_a_drained_region_may_serve_is_refused_in_part(tokyo: Scene) -> None:
    await tokyo.put(drain("frankfurt", 50))
    answers = [await tokyo.ask(tenant="eurobank", model="smol") for _ in range(60)]
    codes = Counter(answer.status_code for answer in answers)
    assert set(codes) == {200, 503}
    assert 10 <= codes[503] <= 50


async def test_grpc_through_envoy(tmp_path: Path, mesh: Mesh) -> None:
    headers = (("x-tradewind-tenant", "acme"), ("x-tradewind-model", "smol"))
    said = {"edge": "tokyo", "upstream": "http2"}
    async with (
        scene(tmp_path, mesh, kind=GrpcBackend, delta=True, **said) as made,
        grpc.aio.insecure_channel(f"127.0.0.1:{made.port}") as channel,
    ):
        call: Any = channel.unary_unary
        assert await call(ECHO)(b"", metadata=headers, timeout=5) == b"singapore"
        await made.put(drain("singapore"))
        assert await call(ECHO)(b"", metadata=headers, timeout=5) == b"dubai"


async def test_a_region_that_dies_is_left_to_the_next(tokyo: Scene) -> None:
    async with Load(tokyo.port, "acme") as load:
        await load.next(50)
        await tokyo.regions["singapore"].stop()
        await load.next(20)
        assert set(await load.next(100)) == {"dubai"}
        await tokyo.regions["singapore"].start()
    # Cut in the middle of an answer, a request may not be tried again; there were four lanes.
    assert len(load.failed) <= 4


async def test_the_replica_dies(tokyo: Scene) -> None:
    async with Load(tokyo.port, "acme") as load:
        await tokyo.put(drain("singapore", 100))
        await load.next(20)
        await tokyo.replica_stack.aclose()
        assert set(await load.next(200)) == {"dubai"}
        await asyncio.sleep(0.5)
        assert set(await load.next(100)) == {"dubai"}
    assert load.failed == []


async def test_a_drain_lets_streams_end(tokyo: Scene) -> None:
    headers = {"x-tradewind-tenant": "acme", "x-tradewind-model": "smol"}
    url = f"http://127.0.0.1:{tokyo.port}/stream"
    async with tokyo.client.stream("GET", url, headers=headers) as answer:
        lines = answer.aiter_lines()
        assert await anext(lines) == "singapore 0"
        await tokyo.put(drain("singapore", 100))
        assert (await tokyo.ask(tenant="acme", model="smol")).text == "dubai"
        assert [line async for line in lines] == [f"singapore {i}" for i in range(1, PIECES)]


@pytest.mark.parametrize("delta", [True, False], ids=["delta", "state-of-the-world"])
async def test_another_replica_takes_over(tmp_path: Path, mesh: Mesh, delta: bool) -> None:
    store, port = Shared(SystemClock()), free_port()
    said = {"listen": f"127.0.0.1:{port}", "edge": "tokyo"}
    async with AsyncExitStack() as stack, backends(Backend, *REGIONS) as regions:
        await put(store, *resources({name: b.endpoint for name, b in regions.items()}))
        ends = [await stack.enter_async_context(AsyncExitStack()) for _ in range(2)]
        replicas = [
            await end.enter_async_context(serving(mesh, store, f"cp-{i}"))
            for i, end in enumerate(ends)
        ]
        document = bootstrap(
            mesh.files(NODE), [at(r) for r in replicas], said, delta=delta, node_id=NODE
        )
        await stack.enter_async_context(envoy(document, tmp_path))
        await listening(port)
        first = 0 if any(s.connected for s in replicas[0].proxies.sessions) else 1
        async with Load(port, "acme") as load:
            await load.next(20)
            await ends[first].aclose()
            other = replicas[1 - first].proxies
            await until(lambda: any(s.connected for s in other.sessions), 15.0)
            revision = await put(store, drain("singapore", 100))
            await until(lambda: all(s.acked_revision >= revision for s in other.sessions))
            await load.next(20)
            assert set(await load.next(50)) == {"dubai"}
        assert load.failed == []


async def test_without_a_place_regions_are_equal(tmp_path: Path, mesh: Mesh) -> None:
    async with scene(tmp_path, mesh, delta=True) as made, Load(made.port, "acme") as load:
        where = await load.next(300)
        assert set(where) == set(REGIONS)
        assert min(where.values()) > 60
        assert load.failed == []


async def test_one_tenants_proxy_needs_no_header(tmp_path: Path, mesh: Mesh) -> None:
    async with scene(tmp_path, mesh, delta=True, tenant="eurobank", edge="tokyo") as made:
        assert (await made.ask()).text == "frankfurt"
        assert (await made.ask(tenant="eurobank", model="smol")).text == "frankfurt"
        answer = await made.ask(tenant="acme", model="smol")
        assert answer.status_code == 403
        assert answer.json()["error"]["code"] == "tenant_unknown"


@pytest.mark.parametrize("delta", [True, False])
async def test_a_listener_that_envoy_cannot_open_is_shown(
    tmp_path: Path, mesh: Mesh, delta: bool
) -> None:
    store = MemoryStore(SystemClock())
    revision = await put(store, *resources())
    async with serving(mesh, store) as replica:
        said = {"listen": "203.0.113.7:10000"}  # no address of this machine (RFC 5737)
        document = bootstrap(mesh.files(NODE), [at(replica)], said, delta=delta, node_id=NODE)
        async with envoy(document, tmp_path):
            await until(lambda: [s for s in replica.discovery.sessions if s.nack], 15.0)
            (session,) = replica.discovery.sessions
            assert session.nack is not None
            assert session.nack.revision == revision
            assert "Listener" in session.nack.reason
            assert "203.0.113.7" in session.nack.reason
            assert session.acked_revision == 0
            assert session.sent_revision == revision
