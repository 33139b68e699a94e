"""The edge as a process of its own, started from a settings file, with cores over the overlay."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from edge_node.forward.memory import Region
from tests.edge_node.cores import Core, Mesh
from tests.edge_node.worlds import (
    ACME,
    RTT_MS,
    TEXT,
    answering,
    ask,
    dying,
    events,
    free_port,
    silent,
    snapshot,
    streamed_text,
)
from tests.topology.worlds import region as region_document
from topology.snapshot import Snapshot
from topology.wire import last_good

HEADERS = {"authorization": f"Bearer {ACME}"}


class Lab:
    """Three cores in this process, and edges in others."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.mesh = Mesh(directory)
        self.cores: dict[str, Core] = {}
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: asyncio.subprocess.Process | None = None

    async def start_cores(self, **regions: Region) -> None:
        for name in RTT_MS:
            identity = self.mesh.identity("core", name)
            core = self.cores[name] = Core(name, regions.get(name, answering(name)), identity)
            await core.start()

    def snapshot(self) -> Snapshot:
        ports = {name: int(core.address.split(":")[1]) for name, core in self.cores.items()}
        return snapshot(*(region_document(n, j, ports[n]) for n, j in JURISDICTIONS.items()))

    def settings(self, **changes: Any) -> Path:
        files = self.mesh.files("edge", "london")
        document = {
            "name": "london",
            "identity": {k: str(getattr(files, k)) for k in ("certificate", "key", "ca")},
            "control_plane": ["127.0.0.1:1"],  # nobody is there
            "state_dir": str(self.directory / "state"),
            "port": self.port,
            "shutdown_grace_ms": 3000,
        }
        path = self.directory / "edge.yaml"
        path.write_text(yaml.safe_dump(document | changes))
        return path

    async def run(self, settings: Path, *, save: bool = True) -> asyncio.subprocess.Process:
        if save:
            last_good.save(self.directory / "state" / "snapshot-0", self.snapshot())
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "edge_node", "run", "--settings", str(settings),
            stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        return self.process

    async def ready(self) -> dict[str, Any]:
        async with httpx.AsyncClient() as client:
            for _ in range(1200):
                try:
                    reply = await client.get(self.url + "/readyz")
                except httpx.TransportError:
                    await asyncio.sleep(0.05)
                    continue
                found: dict[str, Any] = reply.json()
                if found["ready"] and all(found["regions"].values()):
                    return found
                await asyncio.sleep(0.05)
        raise AssertionError("the edge did not become ready")

    async def post(self, **extra: Any) -> httpx.Response:
        async with httpx.AsyncClient(timeout=30) as client:
            return await client.post(
                self.url + "/v1/chat/completions", json=ask(**extra), headers=HEADERS
            )

    async def stop(self, *, told: bool = True) -> int:
        """Tell it to stop, or wait for it to do so unasked; its exit status."""
        process = self.process
        assert process is not None
        if told and process.returncode is None:
            process.terminate()
        _, errors = await asyncio.wait_for(process.communicate(), 30)
        self.log = errors.decode()
        assert process.returncode is not None
        return process.returncode


JURISDICTIONS = {"singapore": "SG", "frankfurt": "EU", "dubai": "AE"}


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    if lab.process is not None and lab.process.returncode is None:
        lab.process.kill()
        await lab.process.communicate()
    for core in lab.cores.values():
        await core.stop()


def memory_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def test_it_serves_from_what_is_on_disk_and_stops_when_told(lab: Lab) -> None:
    await lab.start_cores()
    process = await lab.run(lab.settings())
    found = await lab.ready()
    assert (found["edge"], found["revision"]) == ("london", 1)
    whole = await lab.post()
    assert whole.json()["choices"][0]["message"]["content"] == TEXT
    assert whole.headers["x-tradewind-region"] in RTT_MS
    stream = await lab.post(stream=True)
    assert streamed_text(events(stream.text)) == TEXT
    async with httpx.AsyncClient() as client:
        metrics = (await client.get(lab.url + "/metrics")).text
    assert 'tradewind_edge_tunnel_connected{path="direct",region="dubai"} 1.0' in metrics
    assert "tradewind_edge_control_plane_connected 0.0" in metrics
    assert memory_mib(process.pid) < 150
    assert await lab.stop() == 0
    assert "Traceback" not in lab.log


async def test_a_core_that_is_killed_in_the_middle_of_a_stream(lab: Lab) -> None:
    await lab.start_cores(**{name: dying(name, 4) for name in ("frankfurt", "dubai")})
    lab.cores["singapore"].region = answering("singapore")
    await lab.run(lab.settings())
    await lab.ready()
    for _ in range(3):
        reply = await lab.post(stream=True)
        assert streamed_text(events(reply.text)) == TEXT
        assert events(reply.text)[-1] == "[DONE]"
    assert await lab.stop() == 0


async def test_a_client_that_leaves_frees_the_region(lab: Lab) -> None:
    await lab.start_cores(**{name: silent(name) for name in RTT_MS})
    await lab.run(lab.settings())
    await lab.ready()
    with pytest.raises(httpx.ReadTimeout):
        async with httpx.AsyncClient(timeout=0.3) as client:
            await client.post(lab.url + "/v1/chat/completions", json=ask(), headers=HEADERS)
    for _ in range(1000):
        if sum(core.cancelled for core in lab.cores.values()):
            break
        await asyncio.sleep(0.02)
    assert sum(core.cancelled for core in lab.cores.values()) == 1
    assert await lab.stop() == 0


async def test_requests_under_way_are_finished_before_it_stops(lab: Lab) -> None:
    slow = {name: answering(name, pause_s=0.1) for name in RTT_MS}
    await lab.start_cores(**slow)
    await lab.run(lab.settings())
    await lab.ready()
    under_way = asyncio.create_task(lab.post(stream=True))
    while not any(core.sent for core in lab.cores.values()):
        await asyncio.sleep(0.01)
    assert lab.process is not None
    lab.process.send_signal(signal.SIGTERM)
    reply = await under_way
    assert streamed_text(events(reply.text)) == TEXT
    assert await lab.stop() == 0


async def test_an_idle_connection_does_not_hold_it_up(lab: Lab) -> None:
    await lab.start_cores()
    await lab.run(lab.settings())
    await lab.ready()
    reader, writer = await asyncio.open_connection("127.0.0.1", lab.port)
    loop = asyncio.get_running_loop()
    begin = loop.time()
    assert await lab.stop() == 0
    assert loop.time() - begin < 8  # the grace is 10 s
    writer.close()
    assert reader is not None


async def test_a_client_that_does_not_read_does_not_hold_it_up(lab: Lab) -> None:
    words = tuple("word " * 2000 for _ in range(400))  # about 4 MB
    await lab.start_cores(**{name: answering(name, words) for name in RTT_MS})
    await lab.run(lab.settings(shutdown_grace_ms=500))
    await lab.ready()
    _, writer = await asyncio.open_connection("127.0.0.1", lab.port)
    body = json.dumps(ask(stream=True))
    writer.write(
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ACME}\r\n"
        f"content-length: {len(body)}\r\n\r\n{body}".encode()
    )
    await writer.drain()
    await asyncio.sleep(0.5)
    loop = asyncio.get_running_loop()
    begin = loop.time()
    assert await lab.stop() == 0
    assert loop.time() - begin < 15  # it would never end
    writer.close()


async def test_without_any_configuration_it_lives_and_is_not_ready(lab: Lab) -> None:
    process = await lab.run(lab.settings(), save=False)
    async with httpx.AsyncClient() as client:
        for _ in range(200):
            try:
                reply = await client.get(lab.url + "/readyz")
                break
            except httpx.TransportError:
                await asyncio.sleep(0.05)
        assert reply.status_code == 503
        assert (await client.get(lab.url + "/healthz")).status_code == 200
        reply = await client.post(lab.url + "/v1/chat/completions", json=ask(), headers=HEADERS)
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "not_ready")
    assert process.returncode is None
    assert await lab.stop() == 0


async def test_several_workers_share_the_port_and_come_back(lab: Lab) -> None:
    await lab.start_cores()
    process = await lab.run(lab.settings(workers=2))
    await lab.ready()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    first = [int(pid) for pid in children.read_text().split()]
    assert len(first) == 2
    replies = await asyncio.gather(*(lab.post() for _ in range(20)))
    assert {reply.status_code for reply in replies} == {200}
    os.kill(first[0], signal.SIGKILL)
    for _ in range(200):
        now = [int(pid) for pid in children.read_text().split()]
        if len(now) == 2 and first[0] not in now:
            break
        await asyncio.sleep(0.05)
    assert len(now) == 2
    await lab.ready()
    assert (await lab.post()).status_code == 200
    assert await lab.stop() == 0
    for pid in now:
        assert not Path(f"/proc/{pid}").exists()


async def test_workers_do_not_outlive_their_parent(lab: Lab) -> None:
    await lab.start_cores()
    process = await lab.run(lab.settings(workers=2))
    await lab.ready()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    await process.communicate()
    for _ in range(200):
        if not any(Path(f"/proc/{pid}").exists() for pid in children):
            return
        await asyncio.sleep(0.05)
    raise AssertionError("a worker outlived its parent")


async def test_clients_may_be_served_over_tls(lab: Lab) -> None:
    await lab.start_cores()
    files = lab.mesh.files("dns", "front")  # any certificate for localhost will do
    tls = {"certificate": str(files.certificate), "key": str(files.key)}
    lab.url = lab.url.replace("http://127.0.0.1", "https://localhost")
    context = ssl.create_default_context(cafile=str(files.ca))
    await lab.run(lab.settings(tls=tls))
    async with httpx.AsyncClient(verify=context, timeout=10) as client:
        for _ in range(200):
            with contextlib.suppress(httpx.TransportError):
                if (await client.get(lab.url + "/readyz")).status_code == 200:
                    break
            await asyncio.sleep(0.05)
        reply = await client.post(lab.url + "/v1/chat/completions", json=ask(), headers=HEADERS)
        assert reply.json()["choices"][0]["message"]["content"] == TEXT
    assert await lab.stop() == 0


async def _refused(lab: Lab, settings: Path) -> str:
    await lab.run(settings, save=False)
    assert await lab.stop(told=False) == 2
    assert "Traceback" not in lab.log
    return lab.log


async def test_a_taken_port_is_said(lab: Lab) -> None:
    server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", lab.port)
    assert "cannot listen" in await _refused(lab, lab.settings())
    server.close()
    await server.wait_closed()


async def test_wrong_settings_are_all_said(lab: Lab) -> None:
    said = await _refused(lab, lab.settings(port="eighty", workers=0, colour="blue"))
    for part in ("port", "workers", "colour"):
        assert part in said


async def test_anothers_certificate_is_refused(lab: Lab) -> None:
    for role, name in (("core", "london"), ("edge", "tokyo")):
        files = lab.mesh.files(role, name)
        identity = {k: str(getattr(files, k)) for k in ("certificate", "key", "ca")}
        assert f"{role}/{name}" in await _refused(lab, lab.settings(identity=identity))
