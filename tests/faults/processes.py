"""The whole system as processes of their own: three members of etcd, three replicas, two edges,
two cores; every replica reaches etcd through proxies that can be cut."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import httpx
import msgspec
import yaml

from control_plane import keys
from control_plane.admin.client import AdminClient
from control_plane.admin.errors import AdminError
from control_plane.pki import create_ca, identity_files, issue
from control_plane.store.errors import StoreUnavailable
from control_plane.store.etcd import EtcdSettings, EtcdStore
from lab.etcd_cluster import EtcdCluster
from lab.supervisor import Supervisor
from runtime.clock import SystemClock
from runtime.identity import Identity, Principal
from tests.faults.checker import SETUP, Found, Journal
from tests.store.proxy import Proxy
from tests.store.worlds import free_port_numbers, free_ports
from topology.api_key import digest
from topology.wire.gen.tradewind.v1 import admin_pb2 as pb
from topology.wire.gen.tradewind.v1 import resource_pb2

MODEL = "small"
API_KEY = "sk-faults-0123456789abcdef"
REPLICAS = ("cp-1", "cp-2", "cp-3")
REGIONS = {"frankfurt": "EU", "singapore": "SG"}
EDGES = {"london": (51.51, -0.13), "tokyo": (35.68, 139.69)}
START_S = 40.0  # for a process on a machine that is busy with other things


class System:
    """Start it once; scenarios hurt it, and `heal` makes it whole again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.supervisor = Supervisor(folder)
        self.etcd = EtcdCluster(folder / "etcd", ports=free_ports(3), durable=False)
        self.ports = dict(zip(REPLICAS, free_port_numbers(len(REPLICAS)), strict=True))
        self.edge_ports = dict(zip(EDGES, free_port_numbers(len(EDGES)), strict=True))
        self._core_ports = dict(
            zip(REGIONS, free_port_numbers(len(REGIONS), socket.SOCK_DGRAM), strict=True)
        )
        self.proxies: dict[str, list[Proxy]] = {}
        self._pki = folder / "pki"
        self.store: EtcdStore  # straight to etcd, past the replicas
        self.admins: dict[str, AdminClient] = {}  # by the replica that each asks first
        self.loyal: dict[str, AdminClient] = {}  # that ask no other
        self.journal: Journal | None = None  # of the last scenario

    def endpoint(self, replica: str) -> str:
        return f"127.0.0.1:{self.ports[replica]}"

    @property
    def endpoints(self) -> list[str]:
        return [self.endpoint(replica) for replica in REPLICAS]

    def edge_url(self, edge: str) -> str:
        return f"http://127.0.0.1:{self.edge_ports[edge]}"

    def identity(self, principal: str) -> Identity:
        return Identity.load(identity_files(self._issue(principal)))

    def client(self, *replicas: str) -> AdminClient:
        """An operator's client that asks these, in this order."""
        endpoints = [self.endpoint(replica) for replica in replicas]
        return AdminClient(endpoints, self.identity("admin/faults"))

    async def start(self) -> None:
        create_ca(self._pki)
        await self.etcd.start()
        self.store = EtcdStore(EtcdSettings(self.etcd.endpoints), SystemClock(), Random(1))
        for region in REGIONS:
            await self._run(f"core-{region}", "region_core", "run", self._core_settings(region))
        for replica in REPLICAS:
            settings = await self._replica_settings(replica)
            await self._run(replica, "control_plane.cli.main", "control-plane run", settings)
        for edge in EDGES:
            await self._run(f"edge-{edge}", "edge_node", "run", self._edge_settings(edge))
        for replica in REPLICAS:
            others = [other for other in REPLICAS if other != replica]
            self.admins[replica] = self.client(replica, *others)
            self.loyal[replica] = self.client(replica)
        await self.supervisor.until("replicas", self._replicas_answer, START_S, *REPLICAS)
        await self.apply(_resources(self._core_ports), SETUP)
        await self.settled()

    async def stop(self) -> None:
        for client in (*self.admins.values(), *self.loyal.values()):
            client.__exit__()
        await self.supervisor.stop(grace_s=3.0)
        await self.store.close()
        for proxies in self.proxies.values():
            for proxy in proxies:
                await proxy.stop()
        await self.etcd.stop(grace_s=0)

    # What scenarios do

    def kill_etcd(self) -> None:
        for index in range(3):
            self.etcd.kill(index)

    def signal(self, name: str, number: int) -> None:
        os.kill(self.supervisor.child(name).pid, number)

    def delay(self, late_s: float) -> None:
        """From now on etcd's answers take so long to each replica."""
        for proxies in self.proxies.values():
            for proxy in proxies:
                proxy.cut()
                proxy.late_s = late_s

    def cut(self, replica: str) -> None:
        """Break its connections to etcd: answers that were on their way are lost."""
        for proxy in self.proxies[replica]:
            proxy.cut()

    def partition(self, replica: str) -> None:
        """Nothing passes between this replica and etcd, and nobody is told so."""
        for proxy in self.proxies[replica]:
            proxy.freeze()

    def reconnect(self, replica: str) -> None:
        """The partition ends: what was in flight is lost, new connections work."""
        for proxy in self.proxies[replica]:
            proxy.thaw()
            proxy.cut()

    async def again(self, *names: str) -> None:
        """Start processes that were killed."""
        for name in names:
            if not self.supervisor.child(name).running:
                await self.supervisor.again(name)

    async def serving(self, edge: str) -> None:
        """Wait until an edge says that it is ready and reaches every region."""

        async def ready() -> bool:
            return await self._edge_ready(edge)

        await self.supervisor.until(f"edge {edge}", ready, START_S, f"edge-{edge}")

    async def heal(self) -> None:
        """Everything runs and reaches everything."""
        for name, child in self.supervisor.children.items():
            if child.running:
                self.signal(name, signal.SIGCONT)
        for replica in REPLICAS:
            if any(proxy.frozen for proxy in self.proxies[replica]):
                self.reconnect(replica)
        for index in filter(self.etcd.running, range(3)):
            self.etcd.thaw(index)
        await self.etcd.start()
        await self.again(*self.supervisor.children)

    async def settled(self, timeout_s: float = START_S) -> None:
        """Wait until all replicas follow the store to the same revision, and the edges have it."""
        said: list[str] = []

        async def agreed() -> bool:
            said[:] = [await self._unsettled()]
            return not said[0]

        try:
            await self.supervisor.until("agreement", agreed, timeout_s)
        except Exception as error:
            raise AssertionError(f"not settled: {said}") from error
        for edge in EDGES:
            await self.serving(edge)

    # What is so

    async def leader(self) -> str | None:
        """The replica that directs, by the store."""
        entry = await self.store.get(keys.LEADER)
        return msgspec.json.decode(entry.value)["replica"] if entry else None

    async def statuses(self) -> dict[str, pb.StatusResponse | AdminError]:
        client = self.admins[REPLICAS[0]]
        by_endpoint = dict(await asyncio.to_thread(client.statuses))
        return {replica: by_endpoint[self.endpoint(replica)] for replica in REPLICAS}

    async def status(self, replica: str) -> pb.StatusResponse:
        found = (await self.statuses())[replica]
        assert not isinstance(found, AdminError), found
        return found

    async def found(self) -> Found:
        for _ in range(50):
            try:
                resources, history, audit = [
                    await self.store.list(p) for p in (keys.RESOURCES, keys.HISTORY, keys.AUDIT)
                ]
            except StoreUnavailable:
                await asyncio.sleep(0.1)
                continue
            return Found(resources.entries, history.entries, audit.entries)
        raise AssertionError("etcd does not answer")

    async def apply(self, documents: list[dict[str, Any]], reason: str) -> int:
        request = pb.ApplyRequest(puts=map(message, documents), reason=reason, force=["many"])
        response = await asyncio.to_thread(self.admins[REPLICAS[0]].apply, request)
        return int(response.revision)

    # Settings files

    def _issue(self, principal: str) -> Path:
        role, name = principal.split("/")
        out = self._pki / "issued" / role / name
        if not out.exists():
            issue(self._pki, Principal(role, name), out, hosts=["127.0.0.1"])
        return out

    def _files(self, principal: str) -> dict[str, str]:
        files = identity_files(self._issue(principal))
        return {f: str(getattr(files, f)) for f in ("certificate", "key", "ca")}

    async def _replica_settings(self, name: str) -> Path:
        self.proxies[name] = [Proxy(endpoint) for endpoint in self.etcd.endpoints]
        for proxy in self.proxies[name]:
            await proxy.start()
        return self._settings(
            name,
            {
                "identity": self._files(f"control/{name}"),
                "listen": self.endpoint(name),
                "data_dir": str(self.folder / "state" / name),
                "etcd": {"endpoints": [proxy.address for proxy in self.proxies[name]]},
                "shutdown_grace_ms": 1000,
            },
        )

    def _core_settings(self, region: str) -> Path:
        return self._settings(
            f"core-{region}",
            {
                "region": region,
                "identity": self._files(f"core/{region}"),
                "overlay": {"host": "127.0.0.1", "port": self._core_ports[region]},
                "engine": "sim",
                "sim": {"step_ms": 4.0, "answer_tokens_min": 8, "answer_tokens_max": 40},
                "model": MODEL,
                "control_plane": self.endpoints,
                "state_dir": str(self.folder / "state" / f"core-{region}"),
            },
        )

    def _edge_settings(self, edge: str) -> Path:
        return self._settings(
            f"edge-{edge}",
            {
                "name": edge,
                "host": "127.0.0.1",
                "port": self.edge_ports[edge],
                "identity": self._files(f"edge/{edge}"),
                "control_plane": self.endpoints,
                "state_dir": str(self.folder / "state" / f"edge-{edge}"),
                "shutdown_grace_ms": 2000,
            },
        )

    def _settings(self, name: str, document: dict[str, Any]) -> Path:
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    async def _run(self, name: str, module: str, verb: str, settings: Path) -> None:
        command = [sys.executable, "-m", module, *verb.split(), "--settings", str(settings)]
        await self.supervisor.start(name, command)

    async def _replicas_answer(self) -> bool:
        statuses = await self.statuses()
        return all(
            isinstance(s, pb.StatusResponse) and s.store.available for s in statuses.values()
        )

    async def _unsettled(self) -> str:
        """What is not yet as it will be; empty when all is."""
        statuses = await self.statuses()
        for replica, status in statuses.items():
            if isinstance(status, AdminError):
                return f"{replica}: {status.message}"
            if not status.store.available or status.stale_since_s or status.problems:
                return f"{replica}: {status.store.detail} {list(status.problems)}"
            if sorted(status.replicas) != sorted(REPLICAS):
                return f"{replica} knows of the replicas {list(status.replicas)}"
        directors = {(s.director.replica, s.director.term) for s in statuses.values()}  # type: ignore[union-attr]
        selves = [replica for replica, s in statuses.items() if s.director.self]  # type: ignore[union-attr]
        if len(directors) != 1 or [name for name, _ in directors] != selves:
            return f"directors are {directors}, by their own word {selves}"
        revisions = {replica: s.revision for replica, s in statuses.items()}  # type: ignore[union-attr]
        revision = max(revisions.values())
        if set(revisions.values()) != {revision}:
            return f"replicas are at {revisions}"
        nodes = {node.id: node for s in statuses.values() for node in s.nodes if node.connected}  # type: ignore[union-attr]
        for edge in EDGES:
            node = nodes.get(f"edge/{edge}")
            if node is None or node.acked_revision < revision:
                return f"edge/{edge} has {node.acked_revision if node else None}, not {revision}"
        return ""

    async def _edge_ready(self, edge: str) -> bool:
        try:
            async with httpx.AsyncClient(timeout=2) as client:
                body = (await client.get(self.edge_url(edge) + "/readyz")).json()
        except (httpx.HTTPError, json.JSONDecodeError):
            return False
        return bool(body["ready"] and all(body["regions"].get(region) for region in REGIONS))


async def until(what: Callable[[], Any], timeout_s: float, text: str = "") -> float:
    """Wait until `what()` (may be a coroutine function) is true, or fail; how long that took."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    while True:
        answer = what()
        if asyncio.iscoroutine(answer):
            answer = await answer
        if answer:
            return loop.time() - begun
        assert loop.time() < begun + timeout_s, f"waited {timeout_s} s in vain: {text}"
        await asyncio.sleep(0.03)


def message(document: dict[str, Any]) -> resource_pb2.Resource:
    return resource_pb2.Resource(
        kind=document["kind"], name=document["name"], json=json.dumps(document).encode()
    )


def _resources(core_ports: dict[str, int]) -> list[dict[str, Any]]:
    documents: list[dict[str, Any]] = []

    def add(kind: str, name: str, **spec: Any) -> None:
        documents.append({"kind": kind, "name": name, "spec": spec})

    places = {"frankfurt": (50.11, 8.68), "singapore": (1.35, 103.82)} | EDGES
    for name, jurisdiction in REGIONS.items():
        add(
            "Region", name, **_place(name, places[name], jurisdiction),
            cores=[f"127.0.0.1:{core_ports[name]}"], capacity_tokens_per_s=5000,
        )  # fmt: skip
    for name in EDGES:
        add("EdgeSite", name, **_place(name, places[name], "GB"), addresses=["127.0.0.1"])
    add("Model", MODEL, regions=list(REGIONS), context_tokens=2048)
    add("Route", "all", models=["*"], tenants=["*"], regions=list(REGIONS))
    add("Tenant", "acme", tier="vip", api_keys=[digest(API_KEY)])
    return documents


def _place(name: str, at: tuple[float, float], jurisdiction: str) -> dict[str, Any]:
    return {
        "city": name.title(),
        "latitude": at[0],
        "longitude": at[1],
        "jurisdiction": jurisdiction,
    }
