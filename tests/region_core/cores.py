"""A whole core in this process, on real sockets, and certificates for it."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from random import Random
from typing import Any

from control_plane.pki.authority import create_ca, issue
from region_core.engine.base import Engine
from region_core.process import Core, make_engine
from region_core.settings import CoreSettings
from runtime.clock import SystemClock
from runtime.identity import Identity, IdentityFiles, Principal
from runtime.validation import convert
from topology.overlay.frames import Request
from topology.overlay.tunnel import Tunnel

MODEL = "smollm2-135m-instruct"


def identity(pki: Path, role: str, name: str) -> IdentityFiles:
    if not pki.exists():
        create_ca(pki)
    return issue(pki, Principal(role, name), pki / role / name, hosts=("127.0.0.1",))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def document(pki: Path, **changes: Any) -> dict[str, Any]:
    """Settings of a simulated core, fast enough for tests."""
    files = identity(pki, "core", "frankfurt")
    return {
        "region": "frankfurt",
        "identity": {name: str(getattr(files, name)) for name in ("certificate", "key", "ca")},
        "overlay": {"host": "127.0.0.1", "port": 0},
        "http": {"host": "127.0.0.1", "port": free_port()},
        "engine": "sim",
        "sim": {"prefill_tokens_per_s": 1e6, "step_ms": 1.0, "step_ms_per_sequence": 0.0},
        "shutdown_grace_ms": 500,
    } | changes


class RunningCore:
    """Use `async with`; `core` is the core, `url` its HTTP address, `tunnel` an edge's tunnel."""

    def __init__(self, pki: Path, engine: Engine | None = None, **changes: Any) -> None:
        self.settings = convert(document(pki, **changes), CoreSettings, "test")
        self._engine = engine or make_engine(self.settings)
        self._edge = Identity.load(identity(pki, "edge", "tokyo"))
        assert self.settings.http is not None
        self.url = f"http://127.0.0.1:{self.settings.http.port}"

    async def __aenter__(self) -> RunningCore:
        self.core = Core(self.settings, self._engine, SystemClock(), Random(1))
        await self.core.start()
        assert self.core.overlay is not None
        address = f"127.0.0.1:{self.core.overlay.port}"
        self.tunnel = Tunnel(self.settings.region, address, self._edge)
        self.tunnel.start()
        async with asyncio.timeout(10):
            while not (self.tunnel.connected and self._listens()):
                await asyncio.sleep(0.01)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.tunnel.close()
        await self.core.close()

    def _listens(self) -> bool:
        assert self.settings.http is not None
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.settings.http.port)) == 0


def frame(name: str = "r1", **changes: Any) -> Request:
    asked = {
        "request_id": name,
        "tenant": "acme",
        "model": MODEL,
        "deadline_ms": 60_000,
        "priority": 3,
        "attempt": 1,
        "stream": True,
    }
    return Request(**(asked | changes))


__all__ = ["MODEL", "RunningCore", "document", "frame", "free_port", "identity"]
