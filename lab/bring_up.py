"""Bring the world up in the order that is quickest, and take it down again."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import msgspec
from dns.exception import DNSException

from lab import settings_files
from lab.clients import resolve
from lab.control import Answer, Order, ProcessState
from lab.errors import AddressBusy, LabError, ProcessDied
from lab.etcd_cluster import EtcdCluster
from lab.report import Takeover
from lab.settings_files import CONTROL_PLANE, REPLICA_METRICS, SettingsFiles
from lab.supervisor import Supervisor, require_free, resident_mb
from lab.world import (
    CORE_HTTP_PORT,
    DNS_PORT,
    EDGE_PORT,
    OVERLAY_PORT,
    WORLD,
    EdgePlace,
    World,
)
from topology.api_key import new_key

ETCD_PORT = 23790
ETCD_MEMBERS = 3
READY_TIMEOUT_S = 60.0
MODEL_TIMEOUT_S = 240.0  # the first start converts the weights

Say = Callable[[str], None]


class Lab:
    """One running world under `directory`. `say` is told each step as it is done."""

    def __init__(self, directory: Path, engine: str, say: Say, world: World = WORLD) -> None:
        self.directory = directory
        self.engine = engine
        self.world = world
        self.keys = {tenant.name: new_key() for tenant in world.tenants}
        self._say = say
        self._lock: IO[str] | None = None
        self._supervisor: Supervisor | None = None
        self.etcd: EtcdCluster | None = None
        self.takeover: Takeover | None = None  # once `depose` has been called

    @property
    def _cluster(self) -> EtcdCluster:
        if self.etcd is None:
            raise RuntimeError("the lab has not been started")
        return self.etcd

    @property
    def supervisor(self) -> Supervisor:
        if self._supervisor is None:
            raise RuntimeError("the lab has not been started")
        return self._supervisor

    async def start(self) -> None:
        """Start everything; return when every edge reaches every region and DNS answers."""
        try:
            self._claim()
            require_free(list(_addresses(self.world)))
            files = self._prepare()
            self._supervisor = Supervisor(self.directory)
        except OSError as error:
            raise LabError(
                f"cannot write {error.filename or self.directory}: {error.strerror}",
                hint="name another folder with --directory",
            ) from error
        self.etcd = EtcdCluster(
            self.directory / "etcd", members=ETCD_MEMBERS, base_port=ETCD_PORT, durable=False
        )
        for name, path in files.cores.items():
            await self._run(f"core-{name}", "region_core", "run", path)
        await self._start_wan(files)
        await self._start_control_plane(files)
        await self._tradewind("apply", "-f", str(files.resources))
        self._say("resources applied with `tradewind apply`")
        if self.world.dns:
            await self._run("dns", "control_plane.cli.main", "dns run", files.dns)
        for name, path in files.edges.items():
            await self._run(f"edge-{name}", "edge_node", "run", path)
        await self._ready()

    async def stop(self) -> None:
        """Stop everything that was started, whatever state it is in."""
        if self._supervisor is not None:
            await self._supervisor.stop()
        if self.etcd is not None:
            await self.etcd.stop()
        if self._lock is not None:
            self._lock.close()

    async def drain(self, region: str) -> None:
        """Drain a region as an operator would."""
        await self._tradewind("region", "drain", region, "--reason", "the lab's exercise")

    async def depose(self) -> None:
        """Kill the replica that directs, and wait until another one does."""
        loop = asyncio.get_running_loop()
        killed = await self._director("")
        at_s = loop.time()
        await self.supervisor.kill(killed)
        successor = await self._director(killed)
        self.takeover = Takeover(
            killed=killed,
            successor=successor,
            takeover_ms=round((loop.time() - at_s) * 1000, 1),
        )

    async def _director(self, other_than: str) -> str:
        """The replica that says that it directs, once one does that is not `other_than`."""
        found = ""

        async def asked() -> bool:
            nonlocal found
            for name, port in REPLICA_METRICS.items():
                status, body = await http_get("127.0.0.1", port, "/metrics")
                if status == 200 and _directs(body) and name != other_than:
                    found = name
            return bool(found)

        await self.supervisor.until("a director", asked, READY_TIMEOUT_S)
        return found

    async def kill_etcd_and_core(self, region: str) -> None:
        await self.kill("etcd")
        await self.supervisor.kill(f"core-{region}")

    async def obey(self, order: Order) -> Answer:
        """Kill or start one process, or all of etcd; every answer lists all processes."""
        if order.verb != "ps":
            self._require_known(order.name)
        if order.verb == "kill":
            await self.kill(order.name)
        elif order.verb == "start":
            await self._start_again(order.name)
        return Answer(processes=tuple(self._states()))

    def _require_known(self, name: str) -> None:
        names = ("etcd", *(state.name for state in self._states()))
        if name not in names:
            raise LabError(f"no process {name!r}", hint=f"there are: {', '.join(names)}")

    async def kill(self, name: str) -> None:
        """SIGKILL one process, or, by the name `etcd`, all members of its cluster."""
        members = self._etcd_members(name)
        for index in members:
            self._cluster.kill(index)
        if not members:
            await self.supervisor.kill(name)

    async def _start_again(self, name: str) -> None:
        if name == "etcd":
            await self._cluster.start()
        elif members := self._etcd_members(name):
            await self._cluster.restart(members[0])
        else:
            await self.supervisor.again(name)

    def _etcd_members(self, name: str) -> tuple[int, ...]:
        """The members that a name means: `etcd` all of them, `etcd-2` the second."""
        if name == "etcd":
            return tuple(range(ETCD_MEMBERS))
        kind, _, number = name.partition("-")
        if kind == "etcd" and number.isdigit() and 1 <= int(number) <= ETCD_MEMBERS:
            return (int(number) - 1,)
        return ()

    def _states(self) -> Iterator[ProcessState]:
        for index in range(ETCD_MEMBERS):
            log = str(self._cluster.log_file(index))
            pid = self._cluster.pid(index)
            yield ProcessState(f"etcd-{index + 1}", pid, pid != 0, resident_mb([pid]), log)
        for name, child in self.supervisor.children.items():
            pid = child.pid if child.running else 0
            yield ProcessState(name, pid, child.running, child.memory_mb(), str(child.log))

    def memory_mb(self) -> dict[str, float]:
        """Resident memory in MB of the largest process of each kind."""
        largest: dict[str, float] = {}
        for name, child in self.supervisor.children.items():
            kind = name.partition("-")[0]
            kind = {"cp": "control plane"}.get(kind, kind)
            largest[kind] = round(max(largest.get(kind, 0.0), child.memory_mb()), 1)
        return largest

    def _claim(self) -> None:
        """Hold the directory, so that a second lab says so instead of breaking this one."""
        self.directory.mkdir(parents=True, exist_ok=True)
        lock = (self.directory / "lock").open("a+", encoding="utf-8")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            holder = lock.read().strip()
            lock.close()
            raise AddressBusy(
                f"a lab is running already in {self.directory} (process {holder})",
                hint="stop it with Ctrl-C, or name another folder with --directory",
            ) from error
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        self._lock = lock

    def _prepare(self) -> SettingsFiles:
        for name in ("pki", "settings", "state", "logs", "etcd"):
            shutil.rmtree(self.directory / name, ignore_errors=True)
        endpoints = tuple(f"127.0.0.1:{ETCD_PORT + 2 * i}" for i in range(ETCD_MEMBERS))
        files = settings_files.write(self.directory, self.world, self.engine, endpoints, self.keys)
        keys = self.directory / "keys.json"
        keys.touch(mode=0o600)
        keys.write_bytes(msgspec.json.encode(self.keys))
        self._say(f"certificates and settings written under {self.directory}")
        return files

    async def _run(self, name: str, module: str, verb: str, settings: Path) -> None:
        command = [sys.executable, "-m", module, *verb.split(), "--settings", str(settings)]
        await self.supervisor.start(name, command)

    async def _start_wan(self, files: SettingsFiles) -> None:
        command = [sys.executable, "-m", "lab.wan", "--settings", str(files.wan)]
        await self.supervisor.start("wan", command)

    async def _start_control_plane(self, files: SettingsFiles) -> None:
        await self._cluster.start()
        self._say(f"etcd: {ETCD_MEMBERS} members at {', '.join(self._cluster.endpoints)}")
        for name, path in files.control_plane.items():
            await self._run(name, "control_plane.cli.main", "control-plane run", path)
        for name, endpoint in zip(files.control_plane, CONTROL_PLANE, strict=True):
            await self.supervisor.until(
                f"control-plane replica {name}",
                lambda e=endpoint: _accepts(e),  # type: ignore[misc]
                READY_TIMEOUT_S,
                name,
            )
        self._say(f"control plane: replicas at {', '.join(CONTROL_PLANE)}")

    async def _ready(self) -> None:
        regions, edges = self.world.regions, self.world.edges
        names = [f"core-{region.name}" for region in regions]
        self._say("waiting for the cores to load the model" if self.engine == "torch" else "cores")
        for region, name in zip(regions, names, strict=True):
            await self.supervisor.until(
                f"region {region.name}",
                lambda r=region: _http_ok(r.address, CORE_HTTP_PORT),  # type: ignore[misc]
                MODEL_TIMEOUT_S,
                name,
                "wan",
            )
        self._say(f"region cores: {', '.join(region.name for region in regions)}")
        wanted = [region.name for region in regions]
        for edge in edges:
            await self.supervisor.until(
                f"edge {edge.name}",
                lambda e=edge: _all_regions(e.address, wanted),  # type: ignore[misc]
                READY_TIMEOUT_S,
                f"edge-{edge.name}",
            )
        self._say(f"edges: {', '.join(f'{e.city.name} {e.address}' for e in edges)}")
        if self.world.dns:
            await self.supervisor.until(
                "geo-DNS", lambda: _dns_answers(edges), READY_TIMEOUT_S, "dns"
            )
            self._say(f"geo-DNS at 127.0.0.1:{DNS_PORT}")

    async def _tradewind(self, *arguments: str) -> None:
        """Run the command line, as an operator would."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "control_plane.cli.main", *arguments),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=os.environ | {"TRADEWIND_CONTEXT": str(self.directory / "context.yaml")},
        )
        output, _ = await process.communicate()
        if process.returncode != 0:
            raise ProcessDied(
                f"`tradewind {' '.join(arguments)}` ended with status {process.returncode}:\n"
                + output.decode(errors="replace")
            )


def _addresses(world: World) -> Iterator[tuple[str, int, int]]:
    """Everything the lab listens on: host, port, socket type."""
    stream, datagram = socket.SOCK_STREAM, socket.SOCK_DGRAM
    for index in range(2 * ETCD_MEMBERS):
        yield ("127.0.0.1", ETCD_PORT + index, stream)
    for endpoint in CONTROL_PLANE:
        host, _, port = endpoint.rpartition(":")
        yield (host, int(port), stream)
    if world.dns:
        yield ("127.0.0.1", DNS_PORT, datagram)
        yield ("127.0.0.1", DNS_PORT, stream)
    for edge in world.edges:
        yield (edge.address, EDGE_PORT, stream)
    for region in world.regions:
        yield (region.address, OVERLAY_PORT, datagram)
        yield (region.address, CORE_HTTP_PORT, stream)
    for path in world.wan_paths():
        host, _, port = path.listen.rpartition(":")
        yield (host, int(port), datagram)


async def _accepts(endpoint: str) -> bool:
    host, _, port = endpoint.rpartition(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port))
    except OSError:
        return False
    writer.close()
    return True


async def http_get(host: str, port: int, path: str) -> tuple[int, bytes]:
    """Status and body; status 0 when nobody answers."""
    try:
        reader, writer = await asyncio.open_connection(host, port)
        try:
            request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
            writer.write(request.encode())
            reply = await asyncio.wait_for(reader.read(), 2.0)
        finally:
            writer.close()
    except (OSError, TimeoutError):
        return 0, b""
    head, _, body = reply.partition(b"\r\n\r\n")
    parts = head.split(b" ", 2)
    return (int(parts[1]), body) if len(parts) > 1 and parts[1].isdigit() else (0, b"")


def _directs(metrics: bytes) -> bool:
    return any(
        line.startswith(b"tradewind_director_leading ") and float(line.split()[1]) == 1
        for line in metrics.splitlines()
    )


async def _http_ok(host: str, port: int) -> bool:
    status, _ = await http_get(host, port, "/readyz")
    return status == 200


async def _all_regions(host: str, regions: Sequence[str]) -> bool:
    """Whether an edge is ready and has a live path to every region."""
    status, body = await http_get(host, EDGE_PORT, "/readyz")
    if status != 200:
        return False
    connected = msgspec.json.decode(body, type=_Readiness).regions
    return all(connected.get(region) for region in regions)


class _Readiness(msgspec.Struct):
    """What the lab reads of an edge's /readyz."""

    regions: dict[str, bool]


async def _dns_answers(edges: Sequence[EdgePlace]) -> bool:
    """Whether geo-DNS has found every edge well: each edge's city is sent to it."""
    try:
        for edge in edges:
            if (await resolve(edge.city))[:1] != (edge.address,):
                return False
    except (OSError, DNSException):
        return False  # not yet
    return True
