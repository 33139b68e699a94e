"""Several real edges and a real control plane: together they keep a tenant's limit, and go on
keeping it when the control plane is killed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import httpx
import pytest

from control_plane.changes.plan import Wanted
from control_plane.store.memory import MemoryStore
from edge_node.server import EdgeWorker
from edge_node.settings import EdgeSettings
from region_core.engine.sim import SimSettings
from region_core.process import Core, make_engine
from region_core.settings import CoreSettings, Listen
from runtime.clock import SystemClock
from tests.control_plane.mesh import Mesh, at, serving, until
from tests.edge_node.worlds import ACME, free_port, key_hash
from topology.resources import parse

CLOCK = SystemClock()
MODEL = "smol"
EDGES = ("tokyo", "london", "paris")
LIMIT = 40.0
BURST_S = 0.5
ASKED_PER_S = {"tokyo": 60.0, "london": 25.0, "paris": 2.0}


class Edges:
    """Real edges in this process, on their own ports, and clients that ask at given rates."""

    def __init__(self, workers: dict[str, EdgeWorker], ports: dict[str, int]) -> None:
        self.workers = workers
        self.ports = ports
        self.admitted: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.strange: Counter[int] = Counter()

    @property
    def rates(self) -> dict[str, float]:
        now = asyncio.get_running_loop().time()
        return {name: w.app.quotas.rate("acme", now) for name, w in self.workers.items()}

    async def ask_for(self, seconds: float, per_s: dict[str, float]) -> float:
        """Send `per_s` requests to each edge for a while; returns how long it took."""
        self.admitted.clear()
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with httpx.AsyncClient(timeout=10) as client, asyncio.TaskGroup() as group:
            for name, rate in per_s.items():
                for n in range(int(seconds * rate)):
                    group.create_task(self._ask(client, name, began + n / rate))
        return loop.time() - began

    async def _ask(self, client: httpx.AsyncClient, name: str, at_s: float) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, at_s - loop.time()))
        body = {"model": MODEL, "max_tokens": 2, "messages": [{"role": "user", "content": "?"}]}
        url = f"http://127.0.0.1:{self.ports[name]}/v1/chat/completions"
        reply = await client.post(url, json=body, headers={"authorization": f"Bearer {ACME}"})
        if reply.status_code == 200:
            self.admitted[name] += 1
        elif reply.status_code == 429:
            self.refused[name] += 1
            assert reply.json()["error"]["code"] == "rate_limit_exceeded"
            assert int(reply.headers["retry-after"]) >= 1
        else:
            self.strange[reply.status_code] += 1


def documents(core_port: int, ports: dict[str, int]) -> list[tuple[str, str, dict[str, object]]]:
    place = {"city": "X", "latitude": 1.0, "longitude": 2.0, "jurisdiction": "SG"}
    region = place | {"cores": [f"127.0.0.1:{core_port}"], "capacity_tokens_per_s": 100_000}
    limit = {"requests_per_s": LIMIT, "burst_s": BURST_S}
    edges = [("EdgeSite", n, place | {"addresses": ["127.0.0.1"], "port": ports[n]}) for n in EDGES]
    return [
        ("Region", "singapore", region),
        *edges,
        ("Model", MODEL, {"regions": ["singapore"], "context_tokens": 2048, "cache_ttl_s": 0}),
        ("Route", "all", {"models": ["*"], "tenants": ["*"], "regions": ["singapore"]}),
        ("Tenant", "acme", {"api_keys": [key_hash(ACME)], "limit": limit}),
    ]


@pytest.fixture
async def core(tmp_path: Path) -> AsyncIterator[tuple[Mesh, Core]]:
    mesh = Mesh(tmp_path)
    settings = CoreSettings(
        region="singapore", identity=mesh.files("core/singapore"), overlay=Listen(), engine="sim",
        model=MODEL, sim=SimSettings(instant=True), shutdown_grace_ms=100,
    )  # fmt: skip
    core = Core(settings, make_engine(settings), CLOCK, Random(2))
    await core.start()
    try:
        yield mesh, core
    finally:
        await core.close()


def worker(mesh: Mesh, name: str, port: int, replica: str, folder: Path) -> EdgeWorker:
    settings = EdgeSettings(
        name=name, identity=mesh.files(f"edge/{name}"), control_plane=(replica,),
        state_dir=folder / name, port=port, shutdown_grace_ms=100,
    )  # fmt: skip
    return EdgeWorker(settings, 0, CLOCK, Random(name))


async def test_edges_keep_the_limit_together_with_and_without_a_control_plane(
    core: tuple[Mesh, Core], tmp_path: Path
) -> None:
    mesh, served = core
    assert served.overlay is not None
    ports = {name: free_port() for name in EDGES}
    resources = [
        parse({"kind": k, "name": n, "spec": s}, n)
        for k, n, s in documents(served.overlay.port, ports)
    ]
    started: list[EdgeWorker] = []
    try:
        async with serving(mesh, MemoryStore()) as replica:
            await replica.changes.apply(Wanted(puts=tuple(resources)), "operator/alice")
            edges = Edges({}, ports)
            for name in EDGES:
                one = worker(mesh, name, ports[name], at(replica), tmp_path)
                started.append(one)
                edges.workers[name] = one
                await one.start()
            asking = asyncio.create_task(edges.ask_for(12.0, ASKED_PER_S))
            await until(lambda: _follows(edges), 12.0)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            seconds = await edges.ask_for(2.5, ASKED_PER_S)
            _check(edges, seconds)
            assert sum(edges.admitted.values()) > 0.6 * LIMIT * seconds
            assert edges.admitted["tokyo"] > edges.admitted["london"]
        # The control plane is gone. What the edges have holds, whoever asks where.
        rates = edges.rates
        for asked in (ASKED_PER_S, {"paris": 80.0}, dict.fromkeys(EDGES, 40.0)):
            seconds = await edges.ask_for(1.5, asked)
            _check(edges, seconds)
        assert edges.rates == rates
        assert not edges.strange
    finally:
        for one in started:
            await one.close()


def _follows(edges: Edges) -> bool:
    """The director has split the limit by what is asked, and the edges know."""
    rates = edges.rates
    return sum(rates.values()) > 0.85 * LIMIT and rates["tokyo"] > 1.3 * rates["london"]


def _check(edges: Edges, seconds: float) -> None:
    assert sum(edges.rates.values()) <= LIMIT * (1 + 1e-9)
    most = LIMIT * (seconds + BURST_S) + len(EDGES)
    assert sum(edges.admitted.values()) <= most, edges.admitted
