"""Small sets of resources for tests."""

from __future__ import annotations

from typing import Any

from topology.resources import Resource, parse
from topology.snapshot import Snapshot

KEY_A = "sha256:" + "a" * 64
KEY_B = "sha256:" + "b" * 64


def document(kind: str, name: str, **spec: Any) -> dict[str, Any]:
    return {"kind": kind, "name": name, "spec": spec}


def region(name: str, jurisdiction: str, port: int = 4433) -> dict[str, Any]:
    return document(
        "Region",
        name,
        city=name.title(),
        latitude=1.0,
        longitude=2.0,
        jurisdiction=jurisdiction,
        cores=[f"127.0.0.1:{port}"],
        capacity_tokens_per_s=100,
    )


def edge(name: str) -> dict[str, Any]:
    return document(
        "EdgeSite",
        name,
        city=name.title(),
        latitude=51.5,
        longitude=-0.1,
        jurisdiction="GB",
        addresses=["127.10.0.1"],
    )


def link(source: str, target: str, rtt_ms: float) -> dict[str, Any]:
    return document(
        "Link",
        f"{source}-{target}",
        source=f"EdgeSite/{source}",
        target=f"Region/{target}",
        rtt_ms=rtt_ms,
    )


def base_documents() -> list[dict[str, Any]]:
    return [
        region("singapore", "SG"),
        region("frankfurt", "EU"),
        region("dubai", "AE"),
        edge("london"),
        link("london", "singapore", 173),
        link("london", "frankfurt", 18),
        link("london", "dubai", 123),
        document(
            "Model", "small", regions=["singapore", "frankfurt", "dubai"], context_tokens=2048
        ),
        document(
            "Route",
            "all",
            models=["*"],
            tenants=["*"],
            regions=["singapore", "frankfurt", "dubai"],
        ),
        document("Tenant", "acme", api_keys=[KEY_A]),
        document("Tenant", "eurobank", api_keys=[KEY_B], residency=["EU"]),
    ]


def resources(documents: list[dict[str, Any]]) -> list[Resource]:
    return [parse(raw, "test") for raw in documents]


def base(*extra: dict[str, Any]) -> Snapshot:
    held = {(d["kind"], d["name"]): d for d in [*base_documents(), *extra]}
    return Snapshot.build(1, resources(list(held.values())))
