"""An overload from end to end: a real edge reports, a real replica directs, requests spread."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random

import httpx
import pytest

from control_plane.changes.plan import Wanted
from control_plane.store.memory import MemoryStore
from edge_node.server import EdgeWorker
from edge_node.settings import EdgeSettings
from runtime.clock import SystemClock
from tests.control_plane.mesh import Mesh, at, region, resource, serving, until
from tests.edge_node.cores import Core
from tests.edge_node.worlds import WORDS, answering, free_port, key_hash

KEY = "sk-acme-0123456789"
CLASS = "standard:singapore>frankfurt"
EVERY_S = 0.1  # a request
CAPACITY = 60.0  # tokens/s: about a half of it is more than the requests ask for


@pytest.fixture
async def busy(tmp_path: Path) -> AsyncIterator[tuple[EdgeWorker, Counter[str]]]:
    """A worker, and how many requests each region has served by now."""
    mesh = Mesh(tmp_path / "mesh")
    async with AsyncExitStack() as stack:
        cores = []
        for name in ("singapore", "frankfurt"):
            core = Core(name, answering(name), mesh.identity(f"core/{name}"))
            await core.start()
            stack.push_async_callback(core.stop)
            cores.append(core)
        replica = await stack.enter_async_context(serving(mesh, MemoryStore(SystemClock())))
        puts = (
            *(region(c.name, cores=[c.address], capacity_tokens_per_s=CAPACITY) for c in cores),
            resource(
                "EdgeSite", "tokyo", city="Tokyo", latitude=35.0, longitude=139.0,
                jurisdiction="JP", addresses=["127.0.0.1"],
            ),
            resource("Model", "small", regions=[c.name for c in cores], context_tokens=2048),
            resource(
                "Route", "all", models=["*"], tenants=["*"],
                regions=[c.name for c in cores], prefer="ordered",
            ),
            resource("Tenant", "acme", api_keys=[key_hash(KEY)]),
        )  # fmt: skip
        await replica.changes.apply(Wanted(puts=puts), "admin/test")
        settings = EdgeSettings(
            name="tokyo",
            identity=mesh.files("edge/tokyo"),
            control_plane=(at(replica),),
            state_dir=tmp_path,
            port=free_port(),
            shutdown_grace_ms=500,
        )
        worker = EdgeWorker(settings, 0, SystemClock(), Random(3))
        await worker.start()
        stack.push_async_callback(worker.close)
        await until(lambda: worker.app.serving.ready)
        await asyncio.wait_for(worker.tunnels.all_connected(), 10)
        url = f"http://127.0.0.1:{settings.port}/v1/chat/completions"
        served: Counter[str] = Counter()
        asked = asyncio.create_task(_ask_forever(url, served))
        yield worker, served
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)


async def _ask_forever(url: str, served: Counter[str]) -> None:
    headers = {"authorization": f"Bearer {KEY}", "cache-control": "no-store"}
    body = {"model": "small", "messages": [{"role": "user", "content": "Where to?"}]}
    async with httpx.AsyncClient(timeout=10) as client:
        while True:
            reply = await client.post(url, json=body, headers=headers)
            assert reply.status_code == 200, reply.text
            served[reply.headers["x-tradewind-region"]] += 1
            await asyncio.sleep(EVERY_S)


async def test_an_overload_spreads(busy: tuple[EdgeWorker, Counter[str]]) -> None:
    """Some 80 tokens/s come, of which Singapore may be given 51."""
    assert len(WORDS) / EVERY_S > CAPACITY
    worker, served = busy
    choice = worker.app.serving.choice
    await until(lambda: served["singapore"] > 5)
    assert not served["frankfurt"]
    await until(lambda: choice.directive.shares.get(CLASS, {}).get("frankfurt", 0) > 0.15, 30)
    before = served["frankfurt"]
    await until(lambda: served["frankfurt"] > before + 3)
    assert choice.directive.shares[CLASS]["singapore"] > 0.3
