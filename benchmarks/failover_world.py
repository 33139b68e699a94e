"""Edges, cores and the WAN emulator at the lab's addresses, on a snapshot on disk.

No control plane: what is measured here needs none (fail-static), and two cores of a small machine
have enough to do. The processes are the lab's own (`region_core`, `edge_node`, `lab.wan`), each in
a session of its own, so that one can be killed or stopped whole.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import yaml

from benchmarks.failover_maps import Geography
from benchmarks.harness import Process, Unavailable, free_port, process_tree
from control_plane.pki import authority
from lab.wan import WanControl
from lab.wan.figures import Way
from lab.world import CORE_HTTP_PORT, EDGE_PORT, MODEL, OVERLAY_PORT, EdgePlace, RegionSite
from runtime.identity import Principal
from topology import api_key
from topology.resources import parse
from topology.snapshot import Snapshot
from topology.wire import last_good

NOBODY = "127.0.0.1:9"  # where no control plane answers: nodes go by the snapshot on disk
READY_S = 60.0
MOVED = "a request goes on elsewhere"  # the edge's log of it
# As engines on such a GPU are set up: a whole prompt at once, and several prompts in one step.
SCHEDULING = {"slots": 96, "chunk_tokens": 1024, "step_tokens": 4096}

WAY_UP = "tradewind_edge_tunnel_connected{"
DOUBTED = "tradewind_edge_region_doubted{"
PATH_CHANGED = "path"

# The simulated engine, quicker than the lab's: 50 tokens a second for each sequence, and the
# replay of a continued answer at the speed of one data-centre GPU rather than of two CPU cores.
SIM = {
    "step_ms": 20.0,
    "step_ms_per_sequence": 0.0,
    "prefill_tokens_per_s": 20_000.0,
    "answer_tokens_min": 100,
    "answer_tokens_max": 400,
}


@dataclass(frozen=True)
class Link:
    """One emulated way: whoever sends to `listen` reaches `target`."""

    name: str
    source: str
    region: str
    listen: str
    target: str
    rtt_ms: float


class World:
    """`start` it, break it, mend it, `close` it. One at a time on a machine: fixed addresses."""

    def __init__(
        self,
        folder: Path,
        geography: Geography,
        *,
        engine: str = "sim",
        sim: Mapping[str, Any] = SIM,
    ) -> None:
        self.folder = folder
        self.geography = geography
        self.engine = engine
        self.sim = dict(sim)
        self.links = tuple(_links(geography))
        self.keys = {tenant: f"tw-bench-{tenant}" for tenant in geography.routes}
        self.processes: dict[str, Process] = {}
        self._commands: dict[str, list[str]] = {}
        self.reference_url = ""
        authority.create_ca(folder / "ca")

    async def start(self) -> None:
        """Everything up, and every edge connected to every region."""
        snapshot = self._snapshot()
        self._run("wan", ["lab.wan"], self._write("wan", self._wan()))
        for region in self.geography.regions:
            state = self.folder / f"core-{region.name}"
            last_good.save(state / "last-good.json", snapshot)
            settings = self._write(f"core-{region.name}", self._core(region, state))
            self._run(f"core-{region.name}", ["region_core", "run"], settings)
        if self.engine == "sim":
            self._start_reference()
        for region in self.geography.regions:
            url = f"http://{region.address}:{CORE_HTTP_PORT}/readyz"
            await self.until(f"core-{region.name}", lambda u=url: _is_ok(u))  # type: ignore[misc]
        for edge in self.geography.edges:
            state = self.folder / f"edge-{edge.name}"
            last_good.save(state / "snapshot-0", snapshot)
            settings = self._write(f"edge-{edge.name}", self._edge(edge, state))
            self._run(f"edge-{edge.name}", ["edge_node", "run"], settings)
        for edge in self.geography.edges:
            await self.until(f"edge-{edge.name}", lambda e=edge: self.is_up(e.name))  # type: ignore[misc]

    def close(self) -> None:
        for process in reversed(self.processes.values()):
            signal_all(process.pid, signal.SIGCONT)
            process.stop(3.0)
        self.processes.clear()

    # Breaking and mending

    def kill(self, name: str) -> None:
        """SIGKILL to the process and its children."""
        process = self.processes[name]
        signal_all(process.pid, signal.SIGKILL)
        process.stop()

    def signal(self, name: str, number: int) -> None:
        """To the process and its children."""
        signal_all(self.processes[name].pid, number)

    def hang(self, region: str) -> None:
        """Stop the engine, and it alone: the core goes on answering probes."""
        if self.engine == "sim":
            self._hang_file(region).touch()
        else:
            self._signal_engine(region, signal.SIGSTOP)

    def unhang(self, region: str) -> None:
        if self.engine == "sim":
            self._hang_file(region).unlink()
        else:
            self._signal_engine(region, signal.SIGCONT)

    def _hang_file(self, region: str) -> Path:
        """While it exists, the region's simulated engine finishes no step."""
        return self.folder / f"hang-{region}"

    def _signal_engine(self, region: str, number: int) -> None:
        pid = self.processes[f"core-{region}"].pid
        for child in process_tree(pid)[1:]:
            os.kill(child, number)

    def moves(self, edge: str) -> dict[str, list[Move]]:
        """Request -> where it went on, by the edge's log."""
        found: dict[str, list[Move]] = {}
        for line in self.log(edge, MOVED):
            request = line["request_id"].partition("~")[0]
            move = Move(line["region"], line["path"], line["position"])
            found.setdefault(request, []).append(move)
        return found

    def log(self, edge: str, event: str) -> list[dict[str, Any]]:
        """An edge's log of such events."""
        needle = msgspec.json.encode({"event": event})[1:-1].replace(b'":"', b'": "')
        lines = self.processes[f"edge-{edge}"].log.read_bytes().splitlines()
        return [msgspec.json.decode(line) for line in lines if needle in line]

    async def set_link(self, link: str, direction: Way, **figures: float | bool) -> float:
        """Change what a link does to packets; `direction`: out (from the edge), back, both.

        Returns when it was done, by the machine's monotonic clock.
        """
        answer = await WanControl(self._wan_socket).set(link, direction, **figures)
        return answer.at_s

    @property
    def _wan_socket(self) -> Path:
        return self.folder / "wan.sock"

    def again(self, name: str) -> None:
        """Start what was killed once more."""
        self.processes[name] = Process(f"{self.geography.name}-{name}", self._commands[name])

    async def is_up(self, edge: str) -> bool:
        """Whether an edge reaches every region, by all of the ways that it keeps, and doubts
        none of them."""
        found = await self.metrics(edge)
        ways = [value for name, value in found.items() if name.startswith(WAY_UP)]
        doubted = [value for name, value in found.items() if name.startswith(DOUBTED)]
        return len(ways) >= len(self.geography.regions) and all(ways) and not any(doubted)

    async def metrics(self, edge: str) -> dict[str, float]:
        """`name{labels}` -> value, of what an edge exposes; empty when it does not answer."""
        place = next(e for e in self.geography.edges if e.name == edge)
        status, _, body = await get(f"http://{place.address}:{EDGE_PORT}/metrics")
        lines = body.decode().splitlines() if status == 200 else []
        pairs = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}

    async def until(
        self, what: str, ready: Callable[[], Awaitable[bool]], timeout_s: float = READY_S
    ) -> float:
        """Seconds until `ready`. Raises `Unavailable`, with the end of the log of `what`."""
        begun = time.monotonic()
        while not await ready():
            process = self.processes.get(what)
            late = time.monotonic() - begun > timeout_s
            if late or (process is not None and not process.alive):
                raise Unavailable(f"{what} is not ready{_tail(process)}")
            await asyncio.sleep(0.05)
        return time.monotonic() - begun

    # What is written for them

    def _run(self, name: str, module: list[str], settings: Path) -> None:
        command = [sys.executable, "-m", *module, "--settings", str(settings)]
        self._commands[name] = command
        self.processes[name] = Process(f"{self.geography.name}-{name}", command)

    def _start_reference(self) -> None:
        """A core that nobody disturbs and that takes no time: what answers have to be."""
        port = free_port()
        region = self.geography.regions[0].name
        settings = {
            "region": region,
            "identity": self._identity("core", region),
            "overlay": {"host": "127.0.0.1", "port": 0},
            "http": {"host": "127.0.0.1", "port": port},
            "engine": "sim",
            "sim": self.sim | {"instant": True},
            "model": MODEL,
        }
        self._run("reference", ["region_core", "run"], self._write("reference", settings))
        self.reference_url = f"http://127.0.0.1:{port}"

    def _wan(self) -> dict[str, Any]:
        links = [
            {"name": li.name, "listen": li.listen, "target": li.target, "rtt_ms": li.rtt_ms}
            for li in self.links
        ]
        return {"links": links, "control": str(self._wan_socket)}

    def _core(self, region: RegionSite, state: Path) -> dict[str, Any]:
        made: dict[str, Any] = {
            "region": region.name,
            "identity": self._identity("core", region.name),
            "overlay": {"host": region.address, "port": OVERLAY_PORT},
            "http": {"host": region.address, "port": CORE_HTTP_PORT},
            "engine": self.engine,
            "model": MODEL,
            "scheduling": SCHEDULING if self.engine == "sim" else {},
            "control_plane": [NOBODY],
            "state_dir": str(state),
            "shutdown_grace_ms": 500,
            "log_level": "info",
        }
        if self.engine == "sim":
            made["sim"] = self.sim | {"hang_while": str(self._hang_file(region.name))}
        else:
            made["torch"] = {"threads": 1}
        return made

    def _edge(self, edge: EdgePlace, state: Path) -> dict[str, Any]:
        return {
            "name": edge.name,
            "host": edge.address,
            "port": EDGE_PORT,
            "identity": self._identity("edge", edge.name),
            "state_dir": str(state),
            "shutdown_grace_ms": 500,
            "log_level": "debug",  # it says where requests go on
        }

    def _identity(self, role: str, name: str) -> dict[str, str]:
        folder = self.folder / role / name
        files = authority.issue(self.folder / "ca", Principal(role, name), folder)
        return {part: str(getattr(files, part)) for part in ("certificate", "key", "ca")}

    def _write(self, name: str, settings: Mapping[str, Any]) -> Path:
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(dict(settings)))
        return path

    def _snapshot(self) -> Snapshot:
        geography = self.geography
        names = [region.name for region in geography.regions]
        specs: dict[tuple[str, str], dict[str, Any]] = {}
        for region in geography.regions:
            cores = {"cores": [region.overlay], "capacity_tokens_per_s": 1e6}
            specs["Region", region.name] = _place(region) | cores
        for edge in geography.edges:
            specs["EdgeSite", edge.name] = _place(edge) | {"addresses": [edge.address]}
        for link in self.links:
            specs["Link", link.name] = {
                "source": link.source,
                "target": f"Region/{link.region}",
                "rtt_ms": link.rtt_ms,
                "address": link.listen,
            }
        specs["Model", MODEL] = {"regions": names, "context_tokens": 2048, "cache_ttl_s": 0}
        for tenant, regions in geography.routes.items():
            key = api_key.digest(self.keys[tenant])
            specs["Tenant", tenant] = {"tier": "standard", "api_keys": [key]}
            specs["Route", tenant] = {
                "models": ["*"], "tenants": [tenant], "regions": list(regions),
            }  # fmt: skip
        specs["Policy", "default"] = dict(geography.policy)
        documents = [{"kind": k, "name": n, "spec": spec} for (k, n), spec in specs.items()]
        return Snapshot.build(1, [parse(document, "benchmark") for document in documents])


@dataclass(frozen=True)
class Move:
    """A stream went on by another way, after `position` tokens."""

    region: str
    path: str
    position: int


def encode(body: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode(body)


def signal_all(pid: int, number: int) -> None:
    """To a process and its living descendants."""
    for member in process_tree(pid):
        try:
            os.kill(member, number)
        except ProcessLookupError:
            continue  # it has ended by itself


def _place(site: RegionSite | EdgePlace) -> dict[str, Any]:
    city = site.city
    return {
        "city": city.name,
        "latitude": city.latitude,
        "longitude": city.longitude,
        "jurisdiction": site.jurisdiction,
    }


def _links(geography: Geography) -> list[Link]:
    sources: list[tuple[str, str, str]] = []
    for index, edge in enumerate(geography.edges, 1):
        sources.append((f"EdgeSite/{edge.name}", edge.name, f"127.30.{index}"))
    for index, region in enumerate(geography.regions, 1):
        sources.append((f"Region/{region.name}", region.name, f"127.31.{index}"))
    return [
        Link(
            f"{name}-{region.name}", source, region.name, f"{network}.{index}:{OVERLAY_PORT}",
            region.overlay, geography.rtt_ms[name, region.name],
        )
        for source, name, network in sources
        for index, region in enumerate(geography.regions, 1)
        if name != region.name
    ]  # fmt: skip


def _tail(process: Process | None) -> str:
    if process is None:
        return ""
    lines = process.log.read_text(errors="replace").splitlines()[-8:]
    return f"; the end of {process.log}:\n" + "\n".join(lines)


# --- Small HTTP ----------------------------------------------------------------------------


async def get(url: str, timeout_s: float = 2.0) -> tuple[int, bytes, bytes]:
    """Status, head and body of a GET; status 0 when nobody answers."""
    host, _, path = url.removeprefix("http://").partition("/")
    head = f"GET /{path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"
    return await _whole(host, head.encode(), timeout_s)


async def post(url: str, body: bytes, timeout_s: float = 120.0) -> tuple[int, Any]:
    """Status and decoded JSON of a POST."""
    host, _, path = url.removeprefix("http://").partition("/")
    head = (
        f"POST /{path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    status, _, answer = await _whole(host, head.encode() + body, timeout_s)
    return status, msgspec.json.decode(answer) if answer else None


async def _whole(host: str, request: bytes, timeout_s: float) -> tuple[int, bytes, bytes]:
    name, _, port = host.partition(":")
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(name, int(port))
            try:
                writer.write(request)
                reply = await reader.read()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return 0, b"", b""
    head, _, body = reply.partition(b"\r\n\r\n")
    parts = head.split(b" ", 2)
    status = int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else 0
    return status, head, body


async def _is_ok(url: str) -> bool:
    return (await get(url))[0] == 200
