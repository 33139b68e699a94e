"""Three regions, an edge in Tokyo to whom they lie at known distances, and three tenants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from control_plane import keys
from control_plane.directives.state import State
from control_plane.discovery.proxies.spread import World
from control_plane.store.base import Delete, Put, Store
from topology import resources as res
from topology.resources import Key, Resource
from topology.snapshot import Snapshot

NOW_S = 1_000.0
REGIONS = {"singapore": "SG", "frankfurt": "EU", "dubai": "AE"}
ENDPOINTS = {name: f"127.0.0.{i}:80" for i, name in enumerate(REGIONS, 1)}


def resource(kind: str, name: str, **spec: Any) -> Resource:
    return res.parse({"kind": kind, "name": name, "spec": spec}, f"{kind}/{name}")


def region(name: str, *endpoints: str, **spec: Any) -> Resource:
    place = {"city": name.title(), "latitude": 1.0, "longitude": 103.0}
    rest = {
        "jurisdiction": REGIONS.get(name, "US"),
        "cores": ["127.0.0.1:4433"],
        "capacity_tokens_per_s": 100,
        "endpoints": list(endpoints),
    }
    return resource("Region", name, **(place | rest | spec))


def tenant(name: str, **spec: Any) -> Resource:
    return resource("Tenant", name, **spec)


def drain(region_name: str, percent: float = 100.0, **spec: Any) -> Resource:
    spec = {"region": region_name, "action": "drain", "reason": "a test"} | spec
    return resource("Override", region_name, percent=percent, **spec)


def link(edge: str, region_name: str, rtt_ms: float) -> Resource:
    source, target = f"EdgeSite/{edge}", f"Region/{region_name}"
    return resource("Link", f"{edge}-{region_name}", source=source, target=target, rtt_ms=rtt_ms)


def resources(endpoints: Mapping[str, str] = ENDPOINTS) -> list[Resource]:
    """From Tokyo, Singapore is nearest, then Dubai, then Frankfurt."""
    names = list(REGIONS)
    return [
        *(region(name, endpoints[name]) for name in names),
        resource(
            "EdgeSite",
            "tokyo",
            city="Tokyo",
            latitude=35.7,
            longitude=139.7,
            jurisdiction="JP",
            addresses=["127.0.0.1"],
        ),
        link("tokyo", "singapore", 70),
        link("tokyo", "dubai", 160),
        link("tokyo", "frankfurt", 230),
        resource("Model", "smol", regions=names, context_tokens=2048),
        resource("Model", "euro", regions=["frankfurt"], context_tokens=2048),
        resource("Route", "all", models=["*"], tenants=["*"], regions=names),
        tenant("acme", tier="vip", models=["smol"]),
        tenant("globex"),
        tenant("eurobank", residency=["EU"], deadline_ms=5_000),
        tenant("homeless", residency=["BR"]),
    ]


def world(*more: Resource, state: State | None = None, without: tuple[Key, ...] = ()) -> World:
    snapshot = Snapshot.build(1, resources()).changed(7, more, without)
    return World(snapshot, state or State(), NOW_S)


async def put(store: Store, *puts: Resource, remove: tuple[Resource, ...] = ()) -> int:
    """Straight into the store: what plans allow is not what these tests are about."""
    operations = [Put(keys.of_resource(r.key), res.encode(r)) for r in puts]
    deletes = [Delete(keys.of_resource(r.key)) for r in remove]
    return await store.transact([], [*operations, *deletes])
