"""An edge whose control plane goes away, with a bound on how stale it may be."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from control_plane.changes.plan import Wanted
from control_plane.store.memory import MemoryStore
from edge_node import agent
from edge_node.server import EdgeWorker
from edge_node.settings import EdgeSettings
from runtime.clock import SystemClock
from tests.control_plane.mesh import Mesh, at, serving, until
from tests.edge_node.worlds import ACME, ask, free_port, tenant
from topology.resources import parse
from topology.wire.ads_client import AdsSettings

LIMIT_S = 1.5
SPOKEN = "no control plane has confirmed"


class JumpingClock(SystemClock):
    """The calendar may be set to anything; the monotonic time goes on."""

    def __init__(self) -> None:
        self.off_s = 0.0

    def wall(self) -> float:
        return super().wall() + self.off_s


@asynccontextmanager
async def edge(
    mesh: Mesh, folder: Path, replica: str, clock: SystemClock | None = None
) -> AsyncIterator[str]:
    port = free_port()
    settings = EdgeSettings(
        name="london", identity=mesh.files("edge/london"), control_plane=(replica,),
        state_dir=folder / "state", port=port, shutdown_grace_ms=100,
        discovery=AdsSettings(backoff_min_ms=20, backoff_max_ms=100),
    )  # fmt: skip
    worker = EdgeWorker(settings, 0, clock or SystemClock(), Random(1))
    worker.tunnels.all_connected = _at_once  # type: ignore[method-assign]  # there are no regions
    await worker.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await worker.close()


async def _at_once() -> None:
    return


async def reasons(url: str) -> str:
    async with httpx.AsyncClient() as client:
        return str((await client.get(url + "/readyz")).json()["reasons"])


async def code(url: str) -> str:
    headers = {"authorization": f"Bearer {ACME}"}
    async with httpx.AsyncClient() as client:
        reply = await client.post(url + "/v1/chat/completions", json=ask(), headers=headers)
    assert reply.status_code == 503
    assert "retry-after" in reply.headers
    return str(reply.json()["error"]["code"])


async def becomes(url: str, stale: bool, within_s: float) -> None:
    async with asyncio.timeout(within_s):
        while (SPOKEN in await reasons(url)) is not stale:
            await asyncio.sleep(0.05)


def policy(**staleness: Any) -> dict[str, Any]:
    return {"kind": "Policy", "name": "default", "spec": {"staleness": staleness}}


def resources(**staleness: Any) -> tuple[Any, ...]:
    place = {"city": "X", "latitude": 1.0, "longitude": 2.0, "jurisdiction": "EU"}
    region = place | {"cores": ["127.0.0.1:9"], "capacity_tokens_per_s": 9}
    found = [
        {"kind": "Region", "name": "frankfurt", "spec": region},
        {"kind": "EdgeSite", "name": "london", "spec": place | {"addresses": ["127.0.0.1"]}},
        {"kind": "Model", "name": "small", "spec": {"regions": ["frankfurt"], "context_tokens": 9}},
        {
            "kind": "Route",
            "name": "all",
            "spec": {"models": ["*"], "tenants": ["*"], "regions": ["frankfurt"]},
        },
        tenant("acme", ACME),
        policy(**staleness),
    ]
    return tuple(parse(json.loads(json.dumps(d)), "test") for d in found)


async def test_past_the_bound_it_leaves_and_refuses_until_somebody_is_there_again(
    tmp_path: Path,
) -> None:
    mesh, store, port = Mesh(tmp_path), MemoryStore(), free_port()
    listen = f"127.0.0.1:{port}"
    async with serving(mesh, store, listen=listen) as replica:
        wanted = Wanted(puts=resources(limit_s=LIMIT_S, action="refuse"))
        await replica.changes.apply(wanted, "operator/alice")
        clock = JumpingClock()
        stack = edge(mesh, tmp_path, at(replica), clock)
        url = await stack.__aenter__()
        try:
            await becomes(url, stale=False, within_s=5)
            clock.off_s = 1e7  # the calendar jumps, and nothing is older for it
            await asyncio.sleep(LIMIT_S + 1)
            assert SPOKEN not in await reasons(url)
            assert await code(url) == "no_region_available"
            await replica.close()
            await becomes(url, stale=True, within_s=LIMIT_S + 4)
            assert await code(url) == "configuration_stale"
            again = MemoryStore()
            async with serving(mesh, again, listen=listen) as back:
                await back.changes.apply(wanted, "operator/alice")
                await becomes(url, stale=False, within_s=8)
                assert await code(url) == "no_region_available"
        finally:
            await stack.__aexit__(None, None, None)


async def test_a_start_from_disk_counts_the_time_it_was_not_there(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path)
    async with serving(mesh, MemoryStore()) as replica:
        await replica.changes.apply(Wanted(puts=resources(limit_s=600.0)), "operator/alice")
        async with edge(mesh, tmp_path, at(replica)) as url:
            await becomes(url, stale=False, within_s=5)
            await asyncio.sleep(0.3)
    async with edge(mesh, tmp_path, "127.0.0.1:1") as url:
        assert SPOKEN not in await reasons(url)
    late = JumpingClock()
    late.off_s = 700.0
    async with edge(mesh, tmp_path, "127.0.0.1:1", late) as url:
        await becomes(url, stale=True, within_s=3)
        assert await code(url) == "no_region_available"  # `leave`: whoever comes is served


async def test_a_mistake_does_not_end_the_look_at_the_control_plane(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "WATCH_EVERY_S", 0.01)
    mesh, looks = Mesh(tmp_path / "mesh"), 0

    def look(_: agent.Standing) -> None:
        nonlocal looks
        looks += 1
        raise RuntimeError("a mistake of ours")

    settings = EdgeSettings(
        name="london", identity=mesh.files("edge/london"), state_dir=tmp_path, port=free_port()
    )
    watching = agent.Agent(
        settings, 0, mesh.identity("edge/london"), lambda _: None, SystemClock(), Random(1),
        lambda _: None, look,
    )  # fmt: skip
    watching.start()
    await until(lambda: looks > 2)
    await watching.close()
