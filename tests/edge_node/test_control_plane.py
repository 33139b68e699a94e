"""An edge process and a real control-plane replica: it follows, and lives on without."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from control_plane.changes.plan import Wanted
from control_plane.service import Replica
from control_plane.store.memory import MemoryStore
from tests.control_plane.mesh import Mesh, at, serving
from tests.edge_node.cores import Core
from tests.edge_node.worlds import ACME, RTT_MS, answering, ask, free_port, snapshot
from tests.topology.worlds import document
from tests.topology.worlds import region as region_document
from topology.resources import Resource, parse

JURISDICTIONS = {"singapore": "SG", "frankfurt": "EU", "dubai": "AE"}
HEADERS = {"authorization": f"Bearer {ACME}"}


class Lab:
    """Cores and a control plane in this process, an edge in another."""

    def __init__(self, mesh: Mesh, directory: Path) -> None:
        self.mesh = mesh
        self.directory = directory
        self.cores = [Core(n, answering(n), mesh.identity(f"core/{n}")) for n in RTT_MS]
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: asyncio.subprocess.Process | None = None

    def resources(self) -> tuple[Resource, ...]:
        ports = {core.name: int(core.address.split(":")[1]) for core in self.cores}
        documents = (region_document(n, j, ports[n]) for n, j in JURISDICTIONS.items())
        return tuple(snapshot(*documents))

    async def start_edge(self, *replicas: str) -> None:
        files = self.mesh.files("edge/london")
        settings = {
            "name": "london",
            "identity": {k: str(getattr(files, k)) for k in ("certificate", "key", "ca")},
            "control_plane": list(replicas),
            "state_dir": str(self.directory / "state"),
            "port": self.port,
            "discovery": {"backoff_max_ms": 200},
        }
        path = self.directory / "edge.yaml"
        path.write_text(yaml.safe_dump(settings))
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "edge_node", "run", "--settings", str(path),
            stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip

    async def stop_edge(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.terminate()
            await self.process.wait()

    async def until(self, **expected: Any) -> dict[str, Any]:
        """Wait until /readyz says all of `expected`."""
        found: dict[str, Any] = {}
        async with httpx.AsyncClient() as client:
            for _ in range(400):
                try:
                    found = (await client.get(self.url + "/readyz")).json()
                except httpx.TransportError:
                    found = {}
                if expected.items() <= found.items():
                    return found
                await asyncio.sleep(0.03)
        raise AssertionError(f"never so: {json.dumps(expected)}; last: {json.dumps(found)}")

    async def served_by(self) -> str:
        async with httpx.AsyncClient(timeout=10) as client:
            reply = await client.post(
                self.url + "/v1/chat/completions", json=ask(), headers=HEADERS
            )
        assert reply.status_code == 200, reply.text
        region: str = reply.headers["x-tradewind-region"]
        return region


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    lab = Lab(Mesh(tmp_path), tmp_path)
    for core in lab.cores:
        await core.start()
    yield lab
    await lab.stop_edge()
    for core in lab.cores:
        await core.stop()


async def _apply(replica: Replica, *documents: dict[str, Any]) -> int:
    puts = tuple(parse(d, "test") for d in documents)
    wanted = Wanted(puts=puts, force=("residency",))  # which region is nearest, nobody knows
    return (await replica.changes.apply(wanted, "operator/alice")).revision


async def test_an_edge_follows_its_control_plane_and_outlives_it(lab: Lab) -> None:
    connected = dict.fromkeys(RTT_MS, True)
    async with serving(lab.mesh, MemoryStore()) as replica:
        await lab.start_edge(at(replica))
        await lab.until(ready=False, revision=0)
        done = await replica.changes.apply(Wanted(puts=lab.resources()), "operator/alice")
        await lab.until(ready=True, revision=done.revision, regions=connected)
        first = await lab.served_by()
        drain = document("Override", "d", region=first, action="drain", reason="upgrade")
        revision = await _apply(replica, drain)
        await lab.until(revision=revision)
        second = await lab.served_by()
        assert second != first
    for _ in range(5):  # the control plane has gone
        assert await lab.served_by() != first
    await lab.stop_edge()
    await lab.start_edge("127.0.0.1:1")  # and does not come back
    await lab.until(ready=True, revision=revision, regions=connected)
    assert await lab.served_by() != first
