"""Members as Consul's catalog holds them, and the rules of its blocking queries. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Struct

from control_plane.directives.observed import Member

# Consul allows 64 pairs of metadata, keys of 128 and values of 512 characters.
META_MAX = 512
# What an agent says of a TTL check that nobody set in time (agent/checks/check.go, 1.8).
LAPSED = "TTL expired"

PASSING, WARNING, CRITICAL = "passing", "warning", "critical"


class _Check(Struct):
    Status: str = CRITICAL
    Output: str = ""
    ServiceID: str = ""
    CheckID: str = ""


class _Service(Struct):
    ID: str = ""
    Meta: dict[str, str] | None = None
    ModifyIndex: int = 0


class _Instance(Struct):
    Service: _Service
    Checks: list[_Check] | None = None


def next_index(asked: int, told: int) -> int:
    """The index to ask with next (Consul's documentation, "Blocking queries"): one that goes
    backwards means that the servers were restored or replaced, so everything is read anew, and
    one below 1 would not block."""
    if told < asked:
        return 0
    return max(told, 1)


def status_of(member: Member) -> tuple[str, str]:
    """The check's status, and a note for people."""
    if member.healthy:
        return PASSING, "heartbeats come, and the node is well"
    if member.draining:
        return WARNING, "the node takes nothing new: it drains"
    return CRITICAL, "the node says that it is not well"


def meta_of(member: Member) -> dict[str, str]:
    """A member as the metadata of its service. Addresses beyond what fits are left out."""
    addresses = ""
    for address in member.addresses:
        joined = f"{addresses},{address}" if addresses else address
        if len(joined) > META_MAX:
            break
        addresses = joined
    return {
        "node": member.node,
        "role": member.role,
        "name": member.name,
        "incarnation": member.incarnation,
        "addresses": addresses,
        "version": member.version,
        "since": repr(member.since_s),
    }


def members_of(instances: Iterable[Any]) -> dict[str, Member]:
    """Node id -> member, of a service's instances as /v1/health/service gives them.

    An instance whose TTL check lapsed, or whose agent is gone, is no member. A node that moved
    to another replica is known to two agents for a while: the one where it is alive counts.
    """
    best: dict[str, tuple[tuple[int, int], Member]] = {}
    for raw in instances:
        found = _member(raw)
        if found is None:
            continue
        rank, member = found
        held = best.get(member.node)
        if held is None or held[0] < rank:
            best[member.node] = (rank, member)
    return {node: member for node, (_, member) in best.items()}


def _member(raw: Any) -> tuple[tuple[int, int], Member] | None:
    try:
        instance = msgspec.convert(raw, _Instance)
        meta = instance.Service.Meta or {}
        member = Member(
            node=meta["node"],
            role=meta["role"],
            name=meta["name"],
            incarnation=meta["incarnation"],
            addresses=tuple(a for a in meta.get("addresses", "").split(",") if a),
            version=meta.get("version", ""),
            since_s=float(meta.get("since", "0")),
        )
    except (msgspec.ValidationError, KeyError, ValueError):
        return None  # somebody else's: it has nothing of ours
    if member.node != instance.Service.ID:
        return None
    checks = instance.Checks or []
    agent = [c.Status for c in checks if not c.ServiceID]
    own = [c for c in checks if c.ServiceID]
    if CRITICAL in agent or not own or any(_lapsed(check) for check in own):
        return None
    healthy = all(check.Status == PASSING for check in own)
    alive = not any(check.Status == CRITICAL for check in own)
    draining = alive and not healthy
    member = msgspec.structs.replace(member, healthy=healthy, draining=draining)
    return (int(alive), instance.Service.ModifyIndex), member


def _lapsed(check: _Check) -> bool:
    return check.Status == CRITICAL and check.Output.startswith(LAPSED)
