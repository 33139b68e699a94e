"""Write the settings file of every process, its certificate beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from msgspec import Struct

from control_plane.pki import create_ca, issue
from lab.wan import control as wan_control
from lab.world import (
    ADMIN_PORT,
    CORE_HTTP_PORT,
    DNS_PORT,
    EDGE_PORT,
    MODEL,
    OVERLAY_PORT,
    EdgePlace,
    RegionSite,
    World,
    prefix_table,
)
from runtime.identity import IdentityFiles, Principal
from topology.api_key import digest

REPLICAS = ("cp-1", "cp-2")
CONTROL_PLANE = tuple(f"127.0.0.1:{ADMIN_PORT + i}" for i in range(len(REPLICAS)))
METRICS_PORT = 9400
REPLICA_METRICS = {name: METRICS_PORT + index for index, name in enumerate(REPLICAS)}


class SettingsFiles(Struct, frozen=True):
    """Where everything was written."""

    control_plane: dict[str, Path]
    cores: dict[str, Path]
    edges: dict[str, Path]
    dns: Path
    wan: Path
    resources: Path
    context: Path


def write(
    directory: Path,
    world: World,
    engine: str,
    etcd_endpoints: tuple[str, ...],
    keys: dict[str, str],
) -> SettingsFiles:
    """Write all of the lab's settings under `directory`. `keys`: tenant -> API key."""
    pki = directory / "pki"
    create_ca(pki)

    def identity(role: str, name: str, *hosts: str) -> dict[str, str]:
        files = issue(pki, Principal(role, name), pki / role / name, hosts=hosts)
        return _paths(files)

    config = directory / "settings"
    config.mkdir(parents=True)
    prefixes = _write(config / "prefixes.yaml", prefix_table())
    replicas = {
        name: _write(
            config / f"{name}.yaml",
            {
                "listen": CONTROL_PLANE[index],
                "metrics": f"127.0.0.1:{REPLICA_METRICS[name]}",
                "identity": identity("control", name),
                "data_dir": str(directory / "state" / name),
                "etcd": {"endpoints": list(etcd_endpoints)},
                "prefix_table": str(prefixes),
            },
        )
        for index, name in enumerate(REPLICAS)
    }
    cores = {
        region.name: _write(
            config / f"core-{region.name}.yaml",
            _core(region, engine, identity("core", region.name, region.address), directory)
            | dict(world.core),
        )
        for region in world.regions
    }
    edges = {
        edge.name: _write(
            config / f"edge-{edge.name}.yaml",
            _edge(edge, identity("edge", edge.name), directory) | dict(world.edge),
        )
        for edge in world.edges
    }
    key_hashes = {tenant: digest(key) for tenant, key in keys.items()}
    admin = identity("admin", "lab")
    return SettingsFiles(
        control_plane=replicas,
        cores=cores,
        edges=edges,
        dns=_write(config / "dns.yaml", _dns(identity("dns", "ns1"), prefixes, directory)),
        wan=_write(config / "wan.yaml", _wan(directory, world)),
        resources=_write_all(directory / "resources.yaml", world.resources(key_hashes)),
        context=_write(
            directory / "context.yaml",
            {"endpoints": list(CONTROL_PLANE), "identity": str(Path(admin["key"]).parent)},
        ),
    )


def _core(
    region: RegionSite, engine: str, identity: dict[str, str], directory: Path
) -> dict[str, Any]:
    return {
        "region": region.name,
        "identity": identity,
        "overlay": {"host": region.address, "port": OVERLAY_PORT},
        "http": {"host": region.address, "port": CORE_HTTP_PORT},
        "engine": engine,
        "model": MODEL,
        # Three cores share two CPUs or so; torch's threads spin while they wait for each other.
        "torch": {"threads": 1},
        "shutdown_grace_ms": 1000,
        "control_plane": list(CONTROL_PLANE),
        "state_dir": str(directory / "state" / f"core-{region.name}"),
    }


def _edge(edge: EdgePlace, identity: dict[str, str], directory: Path) -> dict[str, Any]:
    return {
        "name": edge.name,
        "host": edge.address,
        "port": EDGE_PORT,
        "identity": identity,
        "control_plane": list(CONTROL_PLANE),
        "state_dir": str(directory / "state" / f"edge-{edge.name}"),
        "shutdown_grace_ms": 2000,
    }


def _dns(identity: dict[str, str], prefixes: Path, directory: Path) -> dict[str, Any]:
    return {
        "node_id": "dns/ns1",
        "listen": [f"127.0.0.1:{DNS_PORT}"],
        "metrics": f"127.0.0.1:{METRICS_PORT + 9}",
        "identity": identity,
        "control_plane": list(CONTROL_PLANE),
        "last_good": str(directory / "state" / "dns" / "snapshot"),
        "prefix_table": str(prefixes),
    }


def _wan(directory: Path, world: World) -> dict[str, Any]:
    return {
        "control": str(directory / wan_control.SOCKET),
        "links": [
            {
                "name": path.name,
                "listen": path.listen,
                "target": path.forward_to,
                "rtt_ms": path.rtt_ms,
            }
            for path in world.wan_paths()
        ],
    }


def _paths(files: IdentityFiles) -> dict[str, str]:
    return {
        "certificate": str(files.certificate),
        "key": str(files.key),
        "ca": str(files.ca),
    }


def _write(path: Path, content: Any) -> Path:
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def _write_all(path: Path, documents: list[dict[str, Any]]) -> Path:
    path.write_text(yaml.safe_dump_all(documents, sort_keys=False), encoding="utf-8")
    return path
