"""The staged rollout of a change, as it lies beside the resources under `keys.ROLLOUT`.

It is written in the same transaction as the change, so that no replica can hand the change to
nodes that are not yet to have it, and moved on by the director. While one is under way, nodes
beyond its stage are served the snapshot of before the change (with today's overrides).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec
from msgspec import Struct

from topology import resources as res
from topology.policy import RolloutPolicy
from topology.resources import Key, Resource
from topology.snapshot import Snapshot

Status = Literal["canary", "rolling", "paused", "done", "rolled-back", "aborted"]


class Counts(Struct, frozen=True):
    """Requests and errors since the stage began, at edges that have the change and at others."""

    requests_with: float = 0.0
    errors_with: float = 0.0
    requests_without: float = 0.0
    errors_without: float = 0.0

    def rate_with(self, requests_min: float) -> float:
        """The share of requests that failed; -1 where there were too few to say."""
        return _rate(self.errors_with, self.requests_with, requests_min)

    def rate_without(self, requests_min: float) -> float:
        return _rate(self.errors_without, self.requests_without, requests_min)


def _rate(errors: float, requests: float, requests_min: float) -> float:
    return errors / requests if requests > 0 and requests >= requests_min else -1.0


class RolloutRecord(Struct, frozen=True, kw_only=True):
    """Times are Unix seconds. `before` holds, for each resource that the change touched, the
    document of before, or None where there was none; what a node beyond the stage is served."""

    number: int  # of the change, as in history
    author: str
    reason: str
    started_s: float
    status: Status
    percent: float  # of nodes, by `place`, that have the change
    canaries: tuple[str, ...] = ()  # edges that have it whatever their place
    stage_since_s: float
    paused_by: str = ""
    why: str = ""  # of the status: what stopped it, or what it waits for
    before: dict[str, dict[str, Any] | None] = {}  # "Kind/name" -> document
    revision: int = 0  # of the change; 0 only within the transaction that makes it
    base_revision: int = 0  # what the change was planned against
    policy: RolloutPolicy = RolloutPolicy()  # the one that was in force before the change
    step: int = 0  # 0: the canaries have it; n: the n-th of the policy's steps
    joined: tuple[int, ...] = ()  # numbers of later changes that were forced into it
    counts: Counts = Counts()
    counted_s: float = 0.0  # until when `counts` and `held_s` go
    held_s: float = 0.0  # how long this stage has lasted, in steps that no clock can make long
    usual_rate: float = -1.0  # of errors without the change, when that could last be said

    @property
    def under_way(self) -> bool:
        return self.status in ("canary", "rolling", "paused")

    @property
    def keys(self) -> tuple[Key, ...]:
        """The resources that it touches."""
        return tuple(sorted(Key.parse(name) for name in self.before))

    def has(self, principal: str) -> bool:
        """Whether the node with this principal ("edge/tokyo") is served the change."""
        if not self.under_way:
            return True
        role, _, name = principal.partition("/")
        if role == "edge" and (name in self.canaries or "*" in self.canaries):
            return True
        return place(principal, self.number) < self.percent


def place(principal: str, number: int) -> float:
    """Where a node stands in the order of rollout `number`: 0 to 100, the same at each replica."""
    digest = hashlib.blake2b(f"{number}/{principal}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 * 100.0


def snapshot_before(record: RolloutRecord, head: Snapshot) -> Snapshot:
    """What nodes beyond the stage of `record` are served while it is under way.

    `head` with the resources that the change touched as they were, and its overrides as they are
    now, less those of regions that only the change brings. Its revision is below the change's
    until something else is changed (an override), and from then on `head`'s: so a node that
    acknowledged it has not necessarily acknowledged the change (`NodeState.staged` tells).
    Raises `InvalidDocument` where that does not fit together, which `Changes` lets nobody write.
    """
    held: dict[Key, Resource] = {resource.key: resource for resource in head}
    for name, document in record.before.items():
        if document is None:
            held.pop(Key.parse(name), None)
        else:
            resource = res.parse(document, f"{name} before the rollout")
            held[resource.key] = resource
    later = head.revision > record.revision > 0
    revision = head.revision if later else min(record.base_revision, head.revision)
    return Snapshot.build(revision, _without_dangling_overrides(held))


def _without_dangling_overrides(held: Mapping[Key, Resource]) -> Iterable[Resource]:
    for resource in held.values():
        region = getattr(resource.spec, "region", None) if resource.kind == "Override" else None
        if region is None or Key("Region", region) in held:
            yield resource


def encode(record: RolloutRecord) -> bytes:
    """What was there before the change is kept as long as somebody is served it; of one that is
    over, only the names: the transaction that takes a large change back has no room for it twice.
    """
    if not record.under_way:
        record = msgspec.structs.replace(record, before=dict.fromkeys(record.before))
    return msgspec.json.encode(record)


def decode(data: bytes, revision: int = 0) -> RolloutRecord:
    """`revision`: at which it lay in the store; the first is that of the change itself, and is
    kept in the record from then on. Raises `msgspec.MsgspecError`."""
    record = msgspec.json.decode(data, type=RolloutRecord)
    return record if record.revision else msgspec.structs.replace(record, revision=revision)
