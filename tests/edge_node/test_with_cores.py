"""The edge with real region cores, each a process: what holds when one of them is killed.

The cores are shared by all tests, since they take long to start: each test begins by starting those
that the ones before it killed. Which region is asked first is up to the edge, on a busy machine
too: tests go by what a reply says.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
import yaml

from edge_node.forward.tunnels import OnChange, Tunnels
from edge_node.front.app import EdgeApp
from edge_node.front.listener import Listener
from runtime.clock import SystemClock
from tests.edge_node.cores import Mesh
from tests.edge_node.worlds import (
    ACME,
    MODEL,
    RTT_MS,
    _reachable,
    ask,
    events,
    free_port,
    snapshot,
    streamed_text,
)
from tests.topology.worlds import document
from tests.topology.worlds import region as region_document
from topology.overlay.tunnel import Tunnel, TunnelSettings
from topology.overlay.via import Via
from topology.resources import parse
from topology.snapshot import Snapshot

JURISDICTIONS = {"singapore": "SG", "frankfurt": "EU", "dubai": "AE"}
HEADERS = {"authorization": f"Bearer {ACME}", "cache-control": "no-store"}
SLOW = {"step_ms": 12, "answer_tokens_min": 60, "answer_tokens_max": 64}


class Cores:
    """Three of them, in processes of their own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.mesh = Mesh(directory)
        self.ports = {name: free_port() for name in RTT_MS}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        files = self.mesh.files("core", name)
        document = {
            "region": name,
            "identity": {k: str(getattr(files, k)) for k in ("certificate", "key", "ca")},
            "overlay": {"host": "127.0.0.1", "port": self.ports[name]},
            "engine": "sim",
            "sim": {**SLOW, "hang_while": str(self.hang(name))},
            "model": MODEL,
        }
        path = self.directory / f"{name}.yaml"
        path.write_text(yaml.safe_dump(document))
        command = [sys.executable, "-m", "region_core", "run", "--settings", str(path)]
        self.processes[name] = subprocess.Popen(command, stderr=subprocess.DEVNULL)

    def heal(self) -> None:
        """All of them run, and none hangs."""
        for name in RTT_MS:
            self.hang(name).unlink(missing_ok=True)
            process = self.processes.get(name)
            if process is None or process.poll() is not None:
                self.start(name)
            else:
                process.send_signal(signal.SIGCONT)

    def hang(self, name: str) -> Path:
        """While this file is there, the region's engine ends no step."""
        return self.directory / f"{name}.hang"

    def kill(self, name: str) -> None:
        self.processes[name].kill()
        self.processes[name].wait()


class World:
    """The cores, and an edge in this process."""

    def __init__(self, cores: Cores) -> None:
        self.cores = cores
        self.app: EdgeApp
        self.config: Snapshot
        self.http = free_port()
        self.url = f"http://127.0.0.1:{self.http}/v1/chat/completions"

    async def kill(self, name: str) -> None:
        self.cores.kill(name)

    async def whole(self, **extra: Any) -> httpx.Response:
        async with httpx.AsyncClient(timeout=30) as client:
            return await client.post(self.url, json=ask(**extra), headers=HEADERS)

    async def first(self) -> str:
        """Which region serves a request now."""
        reply = await self.whole(max_tokens=1)
        assert reply.status_code == 200, reply.text
        return str(reply.headers["x-tradewind-region"])


@pytest.fixture(scope="module")
def cores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cores]:
    cores = Cores(tmp_path_factory.mktemp("cores"))
    yield cores
    for process in cores.processes.values():
        process.kill()
        process.wait()


@pytest.fixture
async def world(cores: Cores) -> AsyncIterator[World]:
    cores.heal()
    world = World(cores)
    loop = asyncio.get_running_loop()
    identity = cores.mesh.identity("edge", "london")

    # A core that gets no processor time for a while on a busy machine is not dead.
    quick = TunnelSettings(backoff_max_ms=300, connect_timeout_ms=1000, silent_after_ms=600)

    def make(
        region: str, address: str, on_change: OnChange, /, *, via: Via | None, turn: int
    ) -> Tunnel:
        return Tunnel(
            region, address, identity, settings=quick, via=via, turn=turn, on_change=on_change
        )

    tunnels = Tunnels("london", 0, make)
    app = EdgeApp("london", tunnels, SystemClock(), Random(1), loop.time)
    regions = (region_document(n, j, cores.ports[n]) for n, j in JURISDICTIONS.items())
    # On loopback all are equally near; the order says who is first.
    everybody = {"models": ["*"], "tenants": ["*"], "regions": list(RTT_MS)}
    quickly = document("Policy", "default", paths={"failback_s": 0.1})
    config = snapshot(*regions, document("Route", "all", prefer="ordered", **everybody), quickly)
    app.use(config)
    tunnels.use(config)
    world.app, world.config = app, config
    await asyncio.wait_for(tunnels.all_connected(), 60)
    listener = Listener(app, "127.0.0.1", world.http)
    listener.start()
    await _reachable(world.http)
    yield world
    listener.stop_accepting()
    await app.drain(1.0)
    await listener.stopped(1.0)
    await tunnels.close()


async def _stream_and(
    world: World, seed: int, disturb: Callable[[str], Awaitable[None]], **extra: Any
) -> tuple[str, list[Any]]:
    """Stream an answer and disturb the region that gives it in the middle; what the client got."""
    received, region = "", ""
    async with (
        httpx.AsyncClient(timeout=30) as client,
        client.stream(
            "POST", world.url, json=ask(seed=seed, stream=True, **extra), headers=HEADERS
        ) as reply,
    ):
        async for piece in reply.aiter_text():
            received += piece
            if not region and received.count("\n\n") > 10:
                region = reply.headers["x-tradewind-region"]
                await disturb(region)
    return region, events(received)


async def _stream_and_kill(world: World, seed: int) -> tuple[str, list[Any]]:
    return await _stream_and(world, seed, world.kill)


async def test_a_stream_leaves_a_drained_region_word_for_word(world: World) -> None:
    """And its usage is that of an answer that nobody disturbed."""
    expected = (await world.whole(seed=11)).json()
    figures = world.app.figures
    counts = (figures.failed_attempts, figures.cancelled, world.app.forwarder.budget.spent)

    async def drain(region: str) -> None:
        spec = {"region": region, "action": "drain", "reason": "x", "deadline_s": 0.0}
        override = parse(document("Override", region, **spec), "test")
        world.app.use(world.config.changed(2, [override]))

    left, found = await _stream_and(world, 11, drain, stream_options={"include_usage": True})
    assert streamed_text(found) == expected["choices"][0]["message"]["content"]
    assert [event["usage"] for event in found[:-1] if event.get("usage")] == [expected["usage"]]
    reasons = [c["finish_reason"] for event in found[:-1] for c in event["choices"]]
    assert [reason for reason in reasons if reason] == [expected["choices"][0]["finish_reason"]]
    assert (figures.moved, figures.resumed) == (1, 1)
    assert counts == (
        figures.failed_attempts, figures.cancelled, world.app.forwarder.budget.spent,
    )  # fmt: skip
    assert await world.first() != left


async def test_a_region_that_hangs_or_is_stopped_is_left_and_its_streams_go_on(
    world: World,
) -> None:
    loop = asyncio.get_running_loop()
    expected = (await world.whole(seed=12)).json()["choices"][0]["message"]["content"]
    disturbed_s = 0.0

    async def hang(region: str) -> None:
        nonlocal disturbed_s
        disturbed_s = loop.time()
        world.cores.hang(region).touch()

    _, found = await _stream_and(world, 12, hang)
    assert streamed_text(found) == expected
    assert loop.time() - disturbed_s < 15.0  # the limit for silence is 20 s
    resumed = world.app.figures.resumed
    assert resumed >= 1

    async def stop(region: str) -> None:
        world.cores.processes[region].send_signal(signal.SIGSTOP)

    _, found = await _stream_and(world, 12, stop)
    assert streamed_text(found) == expected
    assert world.app.figures.resumed > resumed


async def test_a_core_that_comes_back_is_used_again(world: World) -> None:
    async with asyncio.timeout(60):
        while await world.first() != "frankfurt":  # the route names it first
            await asyncio.sleep(0.05)
        await world.kill("frankfurt")
        assert [await world.first() != "frankfurt" for _ in range(3)] == [True] * 3
        world.cores.start("frankfurt")
        while await world.first() != "frankfurt":
            await asyncio.sleep(0.05)


async def test_a_whole_answer_survives_the_death_of_its_region(world: World) -> None:
    undisturbed = await world.whole(seed=9)
    first, expected = undisturbed.headers["x-tradewind-region"], undisturbed.json()
    asked = asyncio.create_task(world.whole(seed=9))
    await asyncio.sleep(0.3)  # of the 0.7 s or more that it takes
    await world.kill(first)
    reply = await asked
    assert reply.headers["x-tradewind-region"] != first
    assert reply.json()["choices"] == expected["choices"]
    assert reply.json()["usage"] == expected["usage"]


async def test_a_stream_survives_the_death_of_its_region_word_for_word(world: World) -> None:
    expected = (await world.whole(seed=5)).json()
    killed, found = await _stream_and_kill(world, seed=5)
    assert found[-1] == "[DONE]"
    assert streamed_text(found) == expected["choices"][0]["message"]["content"]
    resumed = world.app.figures.resumed
    assert resumed >= 1
    # And once more, with two regions left.
    expected = (await world.whole(seed=6)).json()
    second, found = await _stream_and_kill(world, seed=6)
    assert second != killed
    assert streamed_text(found) == expected["choices"][0]["message"]["content"]
    assert world.app.figures.resumed > resumed
