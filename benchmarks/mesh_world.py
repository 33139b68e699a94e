"""A CA, etcd over TLS, a replica, geo-DNS and crowds of subscribers: processes of this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import yaml

from benchmarks import harness
from benchmarks.harness import Process
from control_plane.admin.client import AdminClient
from control_plane.pki import create_ca, identity_files, issue
from control_plane.store.etcd import EtcdStore
from control_plane.store.settings import EtcdSettings
from lab.etcd_cluster import EtcdCluster, EtcdPorts, EtcdTls
from runtime.clock import SystemClock
from runtime.identity import Identity, Principal

GENERATORS = 2  # processes that a crowd is divided over
WORKERS = 50  # subscribers to a certificate: the workers of one edge


class World:
    """The folder and what runs in it. `start_etcd`, then `start_replica`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        create_ca(folder / "ca")
        self.etcd: EtcdCluster
        self.replica: Process
        self.port = harness.free_port()

    def identity(self, principal: str) -> Path:
        out = self.folder / principal.replace("/", "-")
        if not out.exists():
            issue(self.folder / "ca", Principal(*principal.split("/")), out)
        return out

    def files(self, principal: str) -> dict[str, str]:
        found = identity_files(self.identity(principal))
        return {name: str(getattr(found, name)) for name in ("certificate", "key", "ca")}

    async def start_etcd(self) -> None:
        files = self.files("control/etcd")
        tls = EtcdTls(Path(files["ca"]), Path(files["certificate"]), Path(files["key"]))
        ports = EtcdPorts(harness.free_port(), harness.free_port())
        self.etcd = EtcdCluster(self.folder / "etcd", ports=[ports], tls=tls)
        await self.etcd.start()

    def start_replica(self) -> None:
        settings = {
            "identity": self.files("control/cp-1"),
            "listen": f"127.0.0.1:{self.port}",
            "data_dir": str(self.folder / "cp-1"),
            "log_level": "warning",
            "etcd": {"endpoints": list(self.etcd.endpoints), **self.files("control/cp-1")},
        }
        arguments = ["control-plane", "run", "--settings", self._write("cp-1", settings)]
        self.replica = self._run("propagation-replica", arguments)
        self.replica.wait_for_port(self.port)

    def start_dns(self, port: int) -> Process:
        """geo-DNS that follows the replica."""
        settings = {
            "node_id": "dns/ns1",
            "identity": self.files("dns/ns1"),
            "listen": [f"127.0.0.1:{port}"],
            "control_plane": [f"127.0.0.1:{self.port}"],
            "last_good": str(self.folder / "dns.snapshot"),
            "prefixes": [
                {"prefix": "127.0.0.0/8", "city": "Tokyo", "latitude": 35.7, "longitude": 139.7}
            ],
            "metrics": None,
            "health": {"enabled": False},
            "log_level": "warning",
        }
        return self._run(
            "propagation-dns", ["dns", "run", "--settings", self._write("dns", settings)]
        )

    def admin(self) -> AdminClient:
        identity = Identity.load(identity_files(self.identity("admin/bench")))
        return AdminClient([f"127.0.0.1:{self.port}"], identity)

    def store(self) -> EtcdStore:
        files = {name: Path(path) for name, path in self.files("control/cp-1").items()}
        settings = EtcdSettings(endpoints=self.etcd.endpoints, **files)
        return EtcdStore(settings, SystemClock(), Random(1))

    def _write(self, name: str, settings: dict[str, Any]) -> str:
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings))
        return str(path)

    def _run(self, name: str, arguments: list[str]) -> Process:
        return Process(name, [sys.executable, "-m", "control_plane.cli.main", *arguments])


class Crowd:
    """`size` subscribers in processes of their own (`benchmarks.subscribers`)."""

    def __init__(self, world: World, kind: str, size: int, role: str = "edge") -> None:
        self.size = size
        self._processes: list[subprocess.Popen[str]] = []
        endpoint = world.etcd.endpoints[0] if kind == "etcd" else f"127.0.0.1:{world.port}"
        for index in range(GENERATORS):
            count = size // GENERATORS + (index < size % GENERATORS)
            if count:
                nodes = range(-(-count // WORKERS))
                identities = [world.identity(f"{role}/bench-{index}-{n}") for n in nodes]
                self._start(kind, endpoint, identities, count)

    def _start(self, kind: str, endpoint: str, identities: list[Path], count: int) -> None:
        command = [sys.executable, "-m", "benchmarks.subscribers", f"--kind={kind}"]
        command += [f"--endpoint={endpoint}", f"--count={count}"]
        command += [f"--identity={identity}" for identity in identities]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=harness.ROOT
        )
        self._processes.append(process)

    def ask(self, command: str) -> list[dict[str, Any]]:
        """Every process's answer to a command."""
        self.tell(command)
        return self.hear()

    def tell(self, command: str) -> None:
        for process in self._processes:
            assert process.stdin
            process.stdin.write(command + "\n")
            process.stdin.flush()

    def hear(self) -> list[dict[str, Any]]:
        return [json.loads(p.stdout.readline()) for p in self._processes if p.stdout]

    def cpu_s(self) -> float:
        return sum(harness.cpu_s(process.pid) for process in self._processes)

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe:
                    pipe.close()
