"""Three cores of one region over real sockets: who is asked, and what clients see when one is slow,
fails, or dies. No other region may serve, so another core has to."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
import yaml

from edge_node.forward.replicas import Replicas
from edge_node.forward.tunnels import OnChange, Tunnels
from edge_node.front.app import EdgeApp
from edge_node.front.listener import Listener
from runtime.clock import SystemClock
from tests.edge_node.cores import Core, Mesh
from tests.edge_node.worlds import (
    ACME,
    MODEL,
    TEXT,
    _reachable,
    answering,
    ask,
    events,
    free_port,
    snapshot,
    streamed_text,
)
from tests.topology.worlds import document
from tests.topology.worlds import region as region_document
from topology.overlay.errors import RegionFailure
from topology.overlay.frames import Accept, Failure, Request
from topology.overlay.tunnel import Tunnel, TunnelSettings
from topology.overlay.via import Via

NAME = "frankfurt"
HEADERS = {"authorization": f"Bearer {ACME}", "cache-control": "no-store"}
COUNT = 3
STEPS_MS = (8, 8, 36)  # the third is slow


class Processes:
    """The cores of one region, each a process."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.mesh = Mesh(directory)
        self.ports = [free_port() for _ in range(COUNT)]
        self.running: list[subprocess.Popen[bytes] | None] = [None] * COUNT

    @property
    def addresses(self) -> list[str]:
        return [f"127.0.0.1:{port}" for port in self.ports]

    def start(self, number: int) -> None:
        process = self.running[number]
        if process is not None and process.poll() is None:
            return
        name = f"{NAME}.{number}"
        files = self.mesh.files("core", name)
        text = {
            "region": NAME,
            "name": name,
            "identity": {k: str(getattr(files, k)) for k in ("certificate", "key", "ca")},
            "overlay": {"host": "127.0.0.1", "port": self.ports[number]},
            "engine": "sim",
            "sim": {
                "step_ms": STEPS_MS[number],
                "answer_tokens_min": 28,
                "answer_tokens_max": 32,
                "hang_while": str(self.hang(number)),
            },
            "model": MODEL,
        }
        path = self.directory / f"{name}.yaml"
        path.write_text(yaml.safe_dump(text))
        command = [sys.executable, "-m", "region_core", "run", "--settings", str(path)]
        self.running[number] = subprocess.Popen(command, stderr=subprocess.DEVNULL)

    def hang(self, number: int) -> Path:
        """While this file is there, the core's engine ends no step."""
        return self.directory / f"{number}.hang"

    def kill(self, number: int) -> None:
        process = self.running[number]
        assert process is not None
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    processes = Processes(tmp_path_factory.mktemp("replicas"))
    yield processes
    for process in processes.running:
        if process is not None:
            process.kill()
            process.wait()


class Edge:
    """An edge in this process, before one region of several cores."""

    def __init__(self, tunnels: Tunnels, app: EdgeApp, http: int) -> None:
        self.tunnels = tunnels
        self.app = app
        self.url = f"http://127.0.0.1:{http}/v1/chat/completions"

    @property
    def direct(self) -> Replicas:
        (road,) = (road for road in self.tunnels.roads() if road.region == NAME)
        return road.direct

    def sent(self) -> dict[str, int]:
        """Exchanges by the address of the core, of the tunnels that are there."""
        return {tunnel.address: tunnel.status.exchanges for tunnel in self.direct.tunnels()}

    async def whole(self, client: httpx.AsyncClient, seed: int) -> str:
        reply = await client.post(self.url, json=ask(seed=seed), headers=HEADERS)
        assert reply.status_code == 200, reply.text
        return str(reply.json()["choices"][0]["message"]["content"])

    async def streamed(
        self, client: httpx.AsyncClient, seed: int, begun: Callable[[], object]
    ) -> str:
        received = ""
        body = ask(seed=seed, stream=True)
        async with client.stream("POST", self.url, json=body, headers=HEADERS) as reply:
            assert reply.status_code == 200
            async for piece in reply.aiter_text():
                received += piece
                if received.count("\n\n") > 4:
                    begun()
        return streamed_text(events(received))


@asynccontextmanager
async def edge_before(mesh: Mesh, addresses: list[str], **policy: Any) -> AsyncIterator[Edge]:
    loop = asyncio.get_running_loop()
    identity = mesh.identity("edge", "london")
    # A core that gets no processor time for a while on a busy machine is not dead.
    quick = TunnelSettings(backoff_max_ms=300, connect_timeout_ms=1000, silent_after_ms=600)

    def make(
        region: str, address: str, on_change: OnChange, /, *, via: Via | None, turn: int
    ) -> Tunnel:
        return Tunnel(
            region, address, identity, settings=quick, via=via, turn=turn, on_change=on_change
        )

    tunnels = Tunnels("london", 0, make, rng=Random(1))
    app = EdgeApp("london", tunnels, SystemClock(), Random(1), loop.time)
    cores = region_document(NAME, "EU")
    cores["spec"]["cores"] = addresses
    only = {"models": ["*"], "tenants": ["*"], "regions": [NAME]}
    config = snapshot(
        cores,
        region_document("dubai", "AE", 1),
        region_document("singapore", "SG", 1),
        document("Model", MODEL, regions=[NAME], context_tokens=2048),
        document("Route", "all", **only),
        document("Policy", "default", **policy),
    )
    app.use(config)
    tunnels.use(config)
    port = free_port()
    edge = Edge(tunnels, app, port)
    await until(lambda: edge.direct.live == len(addresses), 60.0)
    listener = Listener(app, "127.0.0.1", port)
    listener.start()
    await _reachable(port)
    try:
        yield edge
    finally:
        listener.stop_accepting()
        await app.drain(1.0)
        await listener.stopped(1.0)
        await tunnels.close()


async def until(holds: Callable[[], object], seconds: float = 20.0) -> None:
    end = asyncio.get_running_loop().time() + seconds
    while not holds():
        assert asyncio.get_running_loop().time() < end, "it did not come to pass in time"
        await asyncio.sleep(0.01)


async def test_load_spreads_evenly_and_a_slow_core_gets_less(processes: Processes) -> None:
    for number in range(COUNT):
        processes.start(number)
    async with edge_before(processes.mesh, processes.addresses) as edge:
        async with httpx.AsyncClient(timeout=30, limits=httpx.Limits(max_connections=40)) as client:

            async def some(asker: int) -> None:
                for number in range(4):
                    await edge.whole(client, 100 * asker + number)

            await asyncio.gather(*(some(asker) for asker in range(16)))
        first, second, slow = (edge.sent()[address] for address in processes.addresses)
        assert first + second + slow == 64
        assert abs(first - second) < 0.5 * max(first, second)
        assert slow < 0.75 * min(first, second)


async def test_one_core_is_killed_and_nothing_is_lost(processes: Processes) -> None:
    for number in range(COUNT):
        processes.start(number)
    async with (
        edge_before(processes.mesh, processes.addresses) as edge,
        httpx.AsyncClient(timeout=30, limits=httpx.Limits(max_connections=40)) as client,
    ):
        seeds = range(12)
        expected = await asyncio.gather(*(edge.whole(client, seed) for seed in seeds))
        begun: set[int] = set()
        streams = [
            asyncio.create_task(edge.streamed(client, seed, lambda seed=seed: begun.add(seed)))  # type: ignore[misc]
            for seed in seeds
        ]
        await until(lambda: len(begun) > 6)
        victim = max(range(COUNT), key=lambda n: open_at(edge, processes.addresses[n]))
        assert open_at(edge, processes.addresses[victim]) > 0
        processes.kill(victim)
        assert await asyncio.gather(*streams) == expected
        assert edge.app.figures.resumed >= 1
        assert edge.app.figures.streams_broken == 0
        assert edge.direct.live == COUNT - 1
        # While it is away the others serve, and when it is back it does too.
        assert await edge.whole(client, 3) == expected[3]
        processes.start(victim)
        await until(lambda: edge.direct.live == COUNT)
        before = edge.sent()[processes.addresses[victim]]
        async with asyncio.timeout(20):
            while edge.sent()[processes.addresses[victim]] == before:
                await asyncio.gather(*(edge.whole(client, seed) for seed in seeds))


async def test_a_core_that_hangs_is_left_and_its_streams_go_on(processes: Processes) -> None:
    for number in range(COUNT):
        processes.start(number)
    async with (
        edge_before(processes.mesh, processes.addresses) as edge,
        httpx.AsyncClient(timeout=30, limits=httpx.Limits(max_connections=40)) as client,
    ):
        seeds = range(6)
        expected = await asyncio.gather(*(edge.whole(client, seed) for seed in seeds))
        begun: set[int] = set()
        streams = [
            asyncio.create_task(edge.streamed(client, seed, lambda seed=seed: begun.add(seed)))  # type: ignore[misc]
            for seed in seeds
        ]
        await until(lambda: len(begun) > 3)
        victim = max(range(COUNT), key=lambda n: open_at(edge, processes.addresses[n]))
        began = asyncio.get_running_loop().time()
        processes.hang(victim).touch()
        try:
            assert await asyncio.gather(*streams) == expected
        finally:
            processes.hang(victim).unlink()
        assert asyncio.get_running_loop().time() - began < 15.0  # the limit for silence is 20 s
        assert edge.app.figures.stalled >= 1
        assert edge.tunnels.doubted(NAME) == ""


def open_at(edge: Edge, address: str) -> int:
    return sum(t.open_exchanges for t in edge.direct.tunnels() if t.address == address)


async def test_a_core_that_answers_500_is_ejected_and_no_client_notices(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path)

    async def broken(request: Request, body: bytes) -> Any:
        yield Accept(0.0, 0.1, NAME, "memory")
        raise RegionFailure(NAME, Failure("engine", "broken", 500, True))

    regions = (broken, answering(NAME, pause_s=0.002), answering(NAME, pause_s=0.002))
    cores = [
        Core(NAME, region, mesh.identity("core", f"{NAME}.{number}"))
        for number, region in enumerate(regions)
    ]
    for core in cores:
        await core.start()
    # Each retry is paid for: let there be enough.
    policy = {"retries": {"budget_min_per_s": 100.0}}
    try:
        async with (
            edge_before(mesh, [core.address for core in cores], **policy) as edge,
            httpx.AsyncClient(timeout=30) as client,
        ):
            for number in range(40):
                assert await edge.whole(client, number) == TEXT
            assert list(edge.direct.left_alone()) == [cores[0].address]
            assert len(cores[0].sent) == 5
            assert edge.tunnels.views()[NAME].reachable
            assert not edge.tunnels.doubted(NAME)
    finally:
        for core in cores:
            await core.stop()
