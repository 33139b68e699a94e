"""What `status -o json` prints. docs/cli.md says what each field means."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from control_plane.admin.errors import AdminError
from topology.wire.gen.tradewind.v1 import admin_pb2 as pb


class Found(Struct, frozen=True):
    """What every replica said, by endpoint, and each node with the replica that knows it best."""

    replicas: dict[str, pb.StatusResponse]
    errors: dict[str, AdminError]
    nodes: list[tuple[pb.NodeStatus, pb.StatusResponse]]

    @property
    def freshest(self) -> pb.StatusResponse:
        """The replica to believe about what all of them follow in the store."""
        return max(
            self.replicas.values(),
            key=lambda s: (s.store.available, not s.stale_since_s, s.revision, s.director.number),
        )

    @property
    def revision(self) -> int:
        return max(s.revision for s in self.replicas.values())

    @property
    def not_asked(self) -> list[str]:
        """Replicas that are alive by the store and that no endpoint led to."""
        names = {s.replica for s in self.replicas.values()}
        alive = {name for s in self.replicas.values() for name in s.replicas}
        # An endpoint that does not answer may be one of these.
        return sorted(alive - names)


def as_data(found: Found) -> dict[str, Any]:
    best = found.freshest
    return {
        "revision": found.revision,
        "stale_since_s": best.stale_since_s or None,
        "director": _director(best),
        "store": _health(best.store),
        "registry": _registry(best),
        "rollout": _rollout(best.rollout),
        "replicas": [_replica(endpoint, s) for endpoint, s in found.replicas.items()],
        "unreachable": [
            {"endpoint": endpoint, "error": error.message}
            for endpoint, error in found.errors.items()
        ],
        "not_asked": found.not_asked,
        "regions": [_region(region) for region in best.regions],
        "members": [_member(member) for member in best.members],
        "nodes": [_node(node, s.replica, found.revision) for node, s in found.nodes],
    }


def _replica(endpoint: str, s: pb.StatusResponse) -> dict[str, Any]:
    return {
        "replica": s.replica,
        "endpoint": endpoint,
        "revision": s.revision,
        "stale_since_s": s.stale_since_s or None,
        "started_s": s.started_s,
        "now_s": s.now_s,
        "store": _health(s.store),
        "registry": _registry(s),
        "director": s.director.replica or None,
        "directive": s.director.number,
        "problems": list(s.problems),
    }


def _health(store: pb.StoreStatus) -> dict[str, Any]:
    return {"available": store.available, "since_s": store.since_s, "detail": store.detail}


def _registry(s: pb.StatusResponse) -> dict[str, Any] | None:
    if not s.HasField("registry"):
        return None
    told = s.registry
    return {
        "backend": told.backend,
        "available": told.available,
        "since_s": told.since_s,
        "detail": told.detail,
    }


def _director(s: pb.StatusResponse) -> dict[str, Any] | None:
    if not s.HasField("director"):
        return None
    told = s.director
    return {
        "replica": told.replica or None,
        "term": told.term,
        "since_s": told.since_s or None,
        "state_s": told.state_s or None,
        "number": told.number,
        "notes": list(told.notes),
    }


def _rollout(told: pb.Rollout) -> dict[str, Any] | None:
    if not told.exists:
        return None
    return {
        "number": told.number,
        "revision": told.revision,
        "status": told.status,
        "percent": told.percent,
        "why": told.why,
        "author": told.author,
        "reason": told.reason,
        "started_s": told.started_s,
    }


def _region(told: pb.RegionStatus) -> dict[str, Any]:
    override = None
    if told.override_action:
        override = {
            "action": told.override_action,
            "percent": told.override_percent,
            "target": told.override_target,
            "paused": told.paused or None,
            "expires_s": told.override_expires_s or None,
        }
    return {
        "region": told.region,
        "up": told.up,
        "since_s": told.since_s or None,
        "why": told.why,
        "utilisation": told.utilisation if told.utilisation >= 0 else None,
        "load_tokens_per_s": told.load_tokens_per_s if told.load_tokens_per_s >= 0 else None,
        "capacity_tokens_per_s": told.capacity_tokens_per_s,
        "override": override,
    }


def _member(told: pb.MemberStatus) -> dict[str, Any]:
    return {
        "node": told.node,
        "healthy": told.healthy,
        "since_s": told.since_s,
        "version": told.version,
        "addresses": list(told.addresses),
    }


def _node(node: pb.NodeStatus, replica: str, newest: int) -> dict[str, Any]:
    nack = None
    if node.nack_revision:
        nack = {"revision": node.nack_revision, "reason": node.nack_reason, "at_s": node.nack_s}
    refused = None
    if node.directive_nack_s:
        refused = {
            "number": node.directive_nack,
            "reason": node.directive_nack_reason,
            "at_s": node.directive_nack_s,
        }
    return {
        "id": node.id,
        "role": node.role,
        "replica": replica,
        "connected": node.connected,
        "since_s": node.since_s,
        "acked_revision": node.acked_revision,
        "sent_revision": node.sent_revision,
        "newest": node.acked_revision >= newest,
        "lag_s": node.lag_s,
        "acked_directive": node.acked_directive,
        "directive_nack": refused,
        "staged": node.staged,
        "nack": nack,
        "unsupported": list(node.unsupported),
    }
