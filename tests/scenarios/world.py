"""Edges, cores and the WAN emulator as processes, on a snapshot on disk, without a control plane.

Their addresses lie in a network of 127.0.0.0/8 that is this test run's own, so that neither the lab
nor a benchmark nor another run is in the way.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import yaml

from control_plane.pki import create_ca, issue
from lab import world as lab
from lab.errors import AddressBusy
from lab.supervisor import Supervisor, require_free, session_members
from lab.wan import WanControl
from runtime.identity import Principal
from tests.scenarios.story import ANYONE, World, to_region
from topology import api_key
from topology.latency import published_rtt_ms
from topology.policy import PathPolicy
from topology.resources import parse
from topology.snapshot import Snapshot
from topology.wire import last_good

MODEL = "small"
EDGE_PORT, OVERLAY_PORT, HTTP_PORT = 8080, 4433, 8000
NOBODY = "127.0.0.1:9"  # where no control plane answers
START_S = 120.0  # for all of it, on a machine that is busy with other things
HEAL_S = 60.0
JURISDICTIONS = {"singapore": "SG", "frankfurt": "EU", "dubai": "AE"}
# Quick, and with answers longer than any that is asked for.
SIM = {
    "step_ms": 12.0,
    "step_ms_per_sequence": 0.0,
    "prefill_tokens_per_s": 50_000.0,
    "answer_tokens_min": 200,
    "answer_tokens_max": 400,
}
# What was broken is preferred again soon after it is mended: stories are short.
RULES = PathPolicy()
POLICY = {"paths": {"failback_s": 0.1}}


class Running:
    """`start` it once; stories break it, and `heal` makes it whole again."""

    def __init__(self, folder: Path, world: World, tenants: Mapping[str, tuple[str, ...]]) -> None:
        self.world = world
        self.folder = folder
        self.supervisor = Supervisor(folder)
        self.wan = WanControl(folder / "wan.sock")
        self.http: httpx.AsyncClient
        self._residency: dict[str, tuple[str, ...] | None] = {ANYONE: None, **tenants}
        self._asked = count()  # no two questions are the same: nobody shares an answer
        self._network = _free_network(world)

    def key(self, tenant: str) -> str:
        return f"sk-scenario-{tenant}"

    def edge_url(self, edge: str) -> str:
        return f"http://{self._edge(edge)}:{EDGE_PORT}"

    @property
    def reference_url(self) -> str:
        """A core that nobody disturbs: what it says is what answers have to be."""
        return f"http://{self._network}.9.1:{HTTP_PORT}"

    async def start(self) -> None:
        self.http = httpx.AsyncClient(timeout=20.0, limits=httpx.Limits(max_connections=200))
        create_ca(self.folder / "ca")
        snapshot = self._snapshot()
        await self._run("wan", "lab.wan", "", self._wan())
        for name in self.world.regions:
            last_good.save(self.folder / f"core-{name}" / "last-good.json", snapshot)
            await self._run(f"core-{name}", "region_core", "run", self._core(name))
        await self._run("reference", "region_core", "run", self._reference())
        await self._until("cores that serve", self._cores_serve, START_S)
        for name in self.world.edges:
            last_good.save(self.folder / f"edge-{name}" / "snapshot-0", snapshot)
            await self._run(f"edge-{name}", "edge_node", "run", self._edge_settings(name))
        await self._until("every way of every edge", self._whole, START_S)
        await self._until("the usual ways", self._as_usual, START_S)

    async def stop(self) -> None:
        for name in self.supervisor.children:
            self._signal(name, signal.SIGCONT)
        await self.supervisor.stop(grace_s=3.0)
        await self.http.aclose()

    # What stories do

    async def act(self, verb: str, name: str) -> None:
        if verb == "kill":
            await self.supervisor.kill(name)
        elif verb == "start":
            await self.supervisor.again(name)
        elif verb in ("stop", "resume"):
            self._signal(name, signal.SIGSTOP if verb == "stop" else signal.SIGCONT)
        elif verb == "hang":
            self._hang_file(name).touch()
        else:
            self._hang_file(name).unlink()

    async def heal(self) -> None:
        """Everything runs, and goes the way that it went in the beginning."""
        await self.wan.reset()
        for name, child in list(self.supervisor.children.items()):
            self._signal(name, signal.SIGCONT)
            self._hang_file(name).unlink(missing_ok=True)
            if not child.running:
                await self.supervisor.again(name)
        await self._until("cores that serve", self._cores_serve, HEAL_S)
        await self._until("every way of every edge", self._whole, HEAL_S)
        await self._until("the usual ways", self._as_usual, HEAL_S)

    # What is so

    async def path(self, edge: str, region: str) -> str:
        """Which way a request to that region goes now; "" where none gets there."""
        reply = await self.ask(edge, to_region(region))
        return reply.headers.get("x-tradewind-path", "") if reply.status_code == 200 else ""

    async def ask(self, edge: str, tenant: str) -> httpx.Response:
        """One request for one token. An edge that does not answer gives status 599."""
        try:
            return await self.http.post(
                f"{self.edge_url(edge)}/v1/chat/completions",
                json=question(f"Where now, {next(self._asked)}?", 1, stream=False),
                headers=self.headers(tenant),
            )
        except httpx.HTTPError as error:
            return httpx.Response(599, text=f"{type(error).__name__}: {error}")

    def headers(self, tenant: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key(tenant)}", "cache-control": "no-store"}

    async def metrics(self, edge: str) -> dict[str, float]:
        """`name{labels}` -> value; empty where the edge does not answer."""
        try:
            reply = await self.http.get(f"{self.edge_url(edge)}/metrics")
        except httpx.HTTPError:
            return {}
        lines = [line for line in reply.text.splitlines() if line and not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    async def _whole(self) -> bool:
        """Whether every edge reaches every region by every way that it keeps."""
        for edge in self.world.edges:
            ways = [
                up
                for name, up in (await self.metrics(edge)).items()
                if name.startswith("tradewind_edge_tunnel_connected{")
            ]
            regions = len(self.world.regions)
            if len(ways) < regions * min(3, regions) or not all(ways):
                return False
        return True

    async def _cores_serve(self) -> bool:
        hosts = [*map(self._region, self.world.regions), f"{self._network}.9.1"]
        return all([await self._answers(f"http://{host}:{HTTP_PORT}") for host in hosts])

    async def _until(
        self, what: str, ready: Callable[[], Awaitable[bool]], timeout_s: float
    ) -> None:
        """Raises `AssertionError`; `ProcessDied` at once when a process has ended by itself."""
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        while not await ready():
            self.supervisor.check()
            if loop.time() > end:
                paths = {
                    f"{edge} to {region}": await self.path(edge, region)
                    for edge in self.world.edges
                    for region in self.world.regions
                }
                raise AssertionError(f"waited {timeout_s:g} s in vain for {what}: {paths}")
            await asyncio.sleep(0.05)

    async def _as_usual(self) -> bool:
        """Whether requests go straight, or by a way that is too good to be left for that."""
        for edge in self.world.edges:
            for region in self.world.regions:
                path = await self.path(edge, region)
                if not path or _is_worse(edge, region, path):
                    return False
        return True

    async def _answers(self, url: str) -> bool:
        try:
            return (await self.http.get(f"{url}/readyz")).status_code == 200
        except httpx.HTTPError:
            return False

    # Addresses and settings

    def _edge(self, name: str) -> str:
        return f"{self._network}.1.{self.world.edges.index(name) + 1}"

    def _region(self, name: str) -> str:
        return f"{self._network}.2.{self.world.regions.index(name) + 1}"

    def _listen(self, source: str, region: str) -> str:
        places = (*self.world.edges, *self.world.regions)
        index = self.world.regions.index(region) + 1
        return f"{self._network}.{10 + places.index(source)}.{index}:{OVERLAY_PORT}"

    def _links(self) -> list[tuple[str, str]]:
        places = (*self.world.edges, *self.world.regions)
        return [(s, r) for s in places for r in self.world.regions if s != r]

    def _wan(self) -> Path:
        links = [
            {
                "name": f"{source}-{region}",
                "listen": self._listen(source, region),
                "target": f"{self._region(region)}:{OVERLAY_PORT}",
                "rtt_ms": _rtt_ms(source, region),
            }
            for source, region in self._links()
        ]
        return self._write("wan", {"links": links, "control": str(self.wan.path)})

    def _core(self, name: str) -> Path:
        return self._write(
            f"core-{name}",
            {
                "region": name,
                "identity": self._identity("core", name),
                "overlay": {"host": self._region(name), "port": OVERLAY_PORT},
                "http": {"host": self._region(name), "port": HTTP_PORT},
                "engine": "sim",
                "sim": SIM | {"hang_while": str(self._hang_file(f"core-{name}"))},
                "model": MODEL,
                "scheduling": {"slots": 64},
                "control_plane": [NOBODY],
                "state_dir": str(self.folder / f"core-{name}"),
                "shutdown_grace_ms": 500,
            },
        )

    def _reference(self) -> Path:
        host, _, port = self.reference_url.removeprefix("http://").partition(":")
        return self._write(
            "reference",
            {
                "region": self.world.regions[0],
                "identity": self._identity("core", self.world.regions[0]),
                "overlay": {"host": host, "port": OVERLAY_PORT},
                "http": {"host": host, "port": int(port)},
                "engine": "sim",
                "sim": SIM | {"instant": True},
                "model": MODEL,
                "shutdown_grace_ms": 500,
            },
        )

    def _edge_settings(self, name: str) -> Path:
        return self._write(
            f"edge-{name}",
            {
                "name": name,
                "identity": self._identity("edge", name),
                "host": self._edge(name),
                "port": EDGE_PORT,
                "state_dir": str(self.folder / f"edge-{name}"),
                "overlay": {"backoff_max_ms": 500},  # who was killed is back at once
                "shutdown_grace_ms": 500,
            },
        )

    def _snapshot(self) -> Snapshot:
        regions = list(self.world.regions)
        specs: dict[tuple[str, str], dict[str, Any]] = {}
        for name in regions:
            cores = {"cores": [f"{self._region(name)}:{OVERLAY_PORT}"]}
            specs["Region", name] = _place(name) | cores | {"capacity_tokens_per_s": 1e6}
        for name in self.world.edges:
            specs["EdgeSite", name] = _place(name) | {"addresses": [self._edge(name)]}
        for source, region in self._links():
            kind = "EdgeSite" if source in self.world.edges else "Region"
            specs["Link", f"{source}-{region}"] = {
                "source": f"{kind}/{source}",
                "target": f"Region/{region}",
                "rtt_ms": _rtt_ms(source, region),
                "address": self._listen(source, region),
            }
        specs["Model", MODEL] = {"regions": regions, "context_tokens": 2048, "cache_ttl_s": 0}
        for tenant, residency in self._residency.items():
            specs["Tenant", tenant] = self._tenant(tenant)
            if residency is not None:
                specs["Tenant", tenant]["residency"] = list(residency)
            specs["Route", tenant] = _route(tenant, regions)
        for region in regions:
            tenant = to_region(region)
            specs["Tenant", tenant] = self._tenant(tenant)
            specs["Route", tenant] = _route(tenant, [region])
        specs["Policy", "default"] = POLICY
        documents = [{"kind": k, "name": n, "spec": spec} for (k, n), spec in specs.items()]
        return Snapshot.build(1, [parse(document, "scenario") for document in documents])

    def _tenant(self, name: str) -> dict[str, Any]:
        return {"tier": "standard", "api_keys": [api_key.digest(self.key(name))]}

    def _identity(self, role: str, name: str) -> dict[str, str]:
        out = self.folder / "pki" / role / name
        files = issue(self.folder / "ca", Principal(role, name), out, hosts=["127.0.0.1"])
        return {part: str(getattr(files, part)) for part in ("certificate", "key", "ca")}

    def _write(self, name: str, document: dict[str, Any]) -> Path:
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    async def _run(self, name: str, module: str, verb: str, settings: Path) -> None:
        command = [sys.executable, "-m", module, *verb.split(), "--settings", str(settings)]
        await self.supervisor.start(name, command)

    def _signal(self, name: str, number: int) -> None:
        for pid in session_members(self.supervisor.child(name).pid):
            os.kill(pid, number)

    def _hang_file(self, name: str) -> Path:
        return self.folder / f"hang-{name}"


def question(prompt: str, tokens: int, *, stream: bool, **extra: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    body = {"model": MODEL, "messages": messages, "max_tokens": tokens, "stream": stream}
    return {**body, "temperature": 0, **extra}


def _route(tenant: str, regions: list[str]) -> dict[str, Any]:
    return {"models": ["*"], "tenants": [tenant], "regions": regions}


def _city(name: str) -> lab.City:
    return next(c for c in (*lab.CLIENT_CITIES, *(r.city for r in lab.REGIONS)) if c.slug == name)


def _rtt_ms(source: str, region: str) -> float:
    found = published_rtt_ms(_city(source).name, _city(region).name)
    assert found is not None, (source, region)
    return found


def _is_worse(edge: str, region: str, path: str) -> bool:
    """Whether the straight way wins what it must to be taken instead: see `PathPolicy`."""
    relay = path.removeprefix("via ")
    if relay == path:
        return False
    long = _rtt_ms(edge, relay) + _rtt_ms(relay, region) + RULES.relay_ms
    won = long - _rtt_ms(edge, region)
    return won > max(RULES.better_by_ms, RULES.better_by_share * long)


def _place(name: str) -> dict[str, Any]:
    city = _city(name)
    return {
        "city": city.name,
        "latitude": city.latitude,
        "longitude": city.longitude,
        "jurisdiction": JURISDICTIONS.get(name, "XX"),
    }


def _free_network(world: World) -> str:
    """The first two numbers of addresses that nothing else listens on."""
    first = os.getpid() % 100
    for number in range(100):
        network = f"127.{100 + (first + number) % 100}"
        wanted = [(f"{network}.1.1", EDGE_PORT, socket.SOCK_STREAM)]
        wanted += [
            (f"{network}.2.{index + 1}", OVERLAY_PORT, socket.SOCK_DGRAM)
            for index in range(len(world.regions))
        ]
        try:
            require_free(wanted)
        except AddressBusy:
            continue
        return network
    raise AssertionError("no network of 127.0.0.0/8 is free")
