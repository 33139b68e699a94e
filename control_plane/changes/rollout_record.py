"""The staged rollout of a change, as it lies beside the resources under `keys.ROLLOUT`.

It is written in the same transaction as the change, so that no replica can hand the change to
nodes that are not yet to have it, and moved on by the director. While one is under way, nodes
beyond its stage are served the snapshot of before the change (with today's overrides).
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import msgspec
from msgspec import Struct

Status = Literal["canary", "rolling", "paused", "done", "rolled-back", "aborted"]


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
    why: str = ""  # of the status: what stopped it
    before: dict[str, dict[str, Any] | None] = {}  # "Kind/name" -> document

    @property
    def under_way(self) -> bool:
        return self.status in ("canary", "rolling", "paused")

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


def encode(record: RolloutRecord) -> bytes:
    return msgspec.json.encode(record)


def decode(data: bytes) -> RolloutRecord:
    """Raises `msgspec.MsgspecError`."""
    return msgspec.json.decode(data, type=RolloutRecord)
