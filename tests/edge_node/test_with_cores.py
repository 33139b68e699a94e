"""The edge with real region cores, each a process: what holds when one of them is killed."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
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
SLOW = {"step_ms": 20, "answer_tokens_min": 60, "answer_tokens_max": 64}


class World:
    """Three cores in processes of their own, and an edge in this one."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.mesh = Mesh(directory)
        self.ports = {name: free_port() for name in RTT_MS}
        self.cores: dict[str, asyncio.subprocess.Process] = {}
        self.app: EdgeApp
        self.config: Snapshot
        self.http = free_port()
        self.url = f"http://127.0.0.1:{self.http}/v1/chat/completions"

    async def start_core(self, name: str) -> None:
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
        self.cores[name] = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "region_core", "run", "--settings", str(path),
            stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip

    def hang(self, name: str) -> Path:
        """While this file is there, the region's engine ends no step."""
        return self.directory / f"{name}.hang"

    async def kill(self, name: str) -> None:
        self.cores[name].kill()
        await self.cores[name].wait()

    async def whole(self, **extra: Any) -> httpx.Response:
        async with httpx.AsyncClient(timeout=20) as client:
            return await client.post(self.url, json=ask(**extra), headers=HEADERS)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    for name in RTT_MS:
        await world.start_core(name)
    loop = asyncio.get_running_loop()
    identity = world.mesh.identity("edge", "london")

    quick = TunnelSettings(backoff_max_ms=300, connect_timeout_ms=1000)

    def make(
        region: str, address: str, on_change: OnChange, /, *, via: Via | None, turn: int
    ) -> Tunnel:
        return Tunnel(
            region, address, identity, settings=quick, via=via, turn=turn, on_change=on_change
        )

    tunnels = Tunnels("london", 0, make)
    app = EdgeApp("london", tunnels, SystemClock(), Random(1), loop.time)
    regions = (region_document(n, j, world.ports[n]) for n, j in JURISDICTIONS.items())
    # On loopback all are equally near; the order says who is first.
    everybody = {"models": ["*"], "tenants": ["*"], "regions": list(RTT_MS)}
    config = snapshot(*regions, document("Route", "all", prefer="ordered", **everybody))
    app.use(config)
    tunnels.use(config)
    world.app, world.config = app, config
    await asyncio.wait_for(tunnels.all_connected(), 20)
    listener = Listener(app, "127.0.0.1", world.http)
    listener.start()
    await asyncio.sleep(0.1)
    yield world
    listener.stop_accepting()
    await app.drain(1.0)
    await listener.stopped(1.0)
    await tunnels.close()
    for process in world.cores.values():
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _stream_and(
    world: World, seed: int, disturb: Callable[[str], Awaitable[None]], **extra: Any
) -> tuple[str, list[Any]]:
    """Stream an answer and disturb the region that gives it in the middle; what the client got."""
    received, region = "", ""
    async with (
        httpx.AsyncClient(timeout=20) as client,
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


async def test_a_stream_survives_the_death_of_its_region_word_for_word(world: World) -> None:
    expected = (await world.whole(seed=5)).json()
    killed, found = await _stream_and_kill(world, seed=5)
    assert killed == "frankfurt"
    assert found[-1] == "[DONE]"
    assert streamed_text(found) == expected["choices"][0]["message"]["content"]
    # And once more, with two regions left.
    expected = (await world.whole(seed=6)).json()
    second, found = await _stream_and_kill(world, seed=6)
    assert second == "dubai"
    assert streamed_text(found) == expected["choices"][0]["message"]["content"]


async def test_a_whole_answer_survives_it_too(world: World) -> None:
    expected = (await world.whole(seed=9)).json()
    asked = asyncio.create_task(world.whole(seed=9))
    await asyncio.sleep(0.4)
    await world.kill("frankfurt")
    reply = await asked
    assert reply.headers["x-tradewind-region"] == "dubai"
    assert reply.json()["choices"] == expected["choices"]
    assert reply.json()["usage"] == expected["usage"]


async def test_a_core_that_comes_back_is_used_again(world: World) -> None:
    assert (await world.whole(max_tokens=1)).headers["x-tradewind-region"] == "frankfurt"
    await world.kill("frankfurt")
    for _ in range(3):
        reply = await world.whole(max_tokens=1)
        assert reply.status_code == 200
        assert reply.headers["x-tradewind-region"] == "dubai"
    await world.start_core("frankfurt")
    for _ in range(300):
        if (await world.whole(max_tokens=1)).headers["x-tradewind-region"] == "frankfurt":
            return
        await asyncio.sleep(0.05)
    raise AssertionError("frankfurt was not used again")


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
    assert left == "frankfurt"
    assert streamed_text(found) == expected["choices"][0]["message"]["content"]
    assert [event["usage"] for event in found[:-1] if event.get("usage")] == [expected["usage"]]
    reasons = [c["finish_reason"] for event in found[:-1] for c in event["choices"]]
    assert [reason for reason in reasons if reason] == [expected["choices"][0]["finish_reason"]]
    assert (figures.moved, figures.resumed) == (1, 1)
    assert counts == (
        figures.failed_attempts, figures.cancelled, world.app.forwarder.budget.spent,
    )  # fmt: skip
    again = await world.whole(seed=11)
    assert again.headers["x-tradewind-region"] == "dubai"


async def test_a_region_that_hangs_or_is_stopped_is_left_and_its_streams_go_on(
    world: World,
) -> None:
    loop = asyncio.get_running_loop()
    expected = (await world.whole(seed=12)).json()["choices"][0]["message"]["content"]
    disturbed_s = 0.0

    async def hang(region: str) -> None:
        nonlocal disturbed_s
        disturbed_s = loop.time()
        world.hang(region).touch()

    hung, found = await _stream_and(world, 12, hang)
    assert (hung, streamed_text(found)) == ("frankfurt", expected)
    assert loop.time() - disturbed_s < 8.0  # the limit for silence is 20 s
    assert (await world.whole(seed=12)).headers["x-tradewind-region"] == "dubai"

    async def stop(region: str) -> None:
        world.cores[region].send_signal(signal.SIGSTOP)

    stopped, found = await _stream_and(world, 12, stop)
    assert (stopped, streamed_text(found)) == ("dubai", expected)
    world.cores[stopped].send_signal(signal.SIGCONT)
    world.hang(hung).unlink()
