"""What one replica says of the whole: itself, its parts, regions, members and nodes. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from control_plane import keys
from control_plane.admin.status_sources import StatusSources
from control_plane.catalog import View
from control_plane.directives.state import State, directive_for
from control_plane.discovery.session import Session
from control_plane.store.base import StoreStatus
from runtime.validation import Problem
from topology.routing import standing
from topology.wire.gen.tradewind.v1 import admin_pb2 as pb

OUTLOOK_FRESH_S = 60.0  # older figures of load are not told


class Now(Struct, frozen=True):
    """The replica's clocks: monotonic, Unix time, and the latter when it started; seconds."""

    monotonic_s: float
    wall_s: float
    started_s: float


def status(
    replica: str,
    store: StoreStatus,
    view: View,
    sessions: Iterable[Session],
    sources: StatusSources,
    now: Now,
) -> pb.StatusResponse:
    response = pb.StatusResponse(
        replica=replica,
        now_s=now.wall_s,
        started_s=now.started_s,
        revision=view.snapshot.revision,
        stale_since_s=view.stale_since_s or 0.0,
        problems=[str(problem) for problem in view.problems],
        store=pb.StoreStatus(available=store.available, since_s=store.since_s, detail=store.detail),
    )
    for session in sorted(sessions, key=lambda s: s.node_id):
        response.nodes.append(_node(session, view, now.monotonic_s))
    _add_director(response, replica, sources)
    if sources.replicas is not None:
        response.replicas.extend(sorted(sources.replicas.alive))
    _add_members(response, sources)
    _add_regions(response, view, sources, now.wall_s)
    if sources.rollouts is not None:
        response.rollout.CopyFrom(sources.rollouts.status())
    return response


def _node(session: Session, view: View, now_s: float) -> pb.NodeStatus:
    rollout = view.rollout
    node = pb.NodeStatus(
        id=session.node_id,
        role=session.principal.role,
        connected=session.connected,
        since_s=session.since_s,
        acked_revision=session.acked_revision,
        sent_revision=session.sent_revision,
        lag_s=session.unanswered_for_s(now_s),
        unsupported=list(session.unsupported),
        acked_directive=session.acked_directive,
        staged=rollout is not None and not rollout.has(str(session.principal)),
    )
    if session.nack is not None:
        node.nack_revision = session.nack.revision
        node.nack_reason = session.nack.reason
        node.nack_s = session.nack.at_s
    refused = session.directive_nack
    if refused is not None:
        node.directive_nack = refused.version.number
        node.directive_nack_reason = refused.reason
        node.directive_nack_s = refused.at_s
    return node


def _add_director(response: pb.StatusResponse, replica: str, sources: StatusSources) -> None:
    if sources.election is None and sources.directives is None:
        return
    director = response.director
    director.SetInParent()
    leader = sources.election.leader if sources.election is not None else None
    if leader is not None and not leader.name:
        allowed = "a replica's claim: nobody directs until somebody removes the key"
        found = Problem(keys.LEADER, "", "what no replica wrote", allowed)
        response.problems.append(str(found))
    elif leader is not None:
        director.replica, director.term = leader.name, leader.revision
        director.since_s = leader.since_s
        director.self = leader.name == replica
    if sources.directives is not None:
        state = sources.directives.state
        director.state_s, director.number = state.at_s, state.number
        director.notes.extend(state.notes)


def _add_members(response: pb.StatusResponse, sources: StatusSources) -> None:
    registry = sources.registry
    if registry is None:
        return
    told = registry.status
    response.registry.backend = registry.backend
    response.registry.available = told.available
    response.registry.since_s = told.since_s
    response.registry.detail = told.detail
    for node, member in sorted(registry.members.items()):
        response.members.add(
            node=node,
            healthy=member.healthy,
            since_s=member.since_s,
            version=member.version,
            addresses=list(member.addresses),
        )


def _add_regions(
    response: pb.StatusResponse, view: View, sources: StatusSources, wall_s: float
) -> None:
    directives = sources.directives
    state = directives.state if directives is not None else State()
    outlook = directives.outlook if directives is not None else None
    if outlook is not None and abs(wall_s - outlook.at_s) > OUTLOOK_FRESH_S:
        outlook = None
    directive = directive_for(state, "")
    for name, spec in sorted(view.snapshot.regions.items()):
        verdict = state.verdicts.get(name)
        region = response.regions.add(
            region=name,
            up=verdict is None or verdict.up,
            since_s=verdict.since_s if verdict is not None else 0.0,
            why=verdict.why if verdict is not None else "nobody has said otherwise",
            utilisation=outlook.utilisation.get(name, -1.0) if outlook is not None else -1.0,
            load_tokens_per_s=-1.0
            if outlook is None
            else sum(flows.get(name, 0.0) for flows in outlook.flows.values()),
            capacity_tokens_per_s=spec.capacity_tokens_per_s,
        )
        holds = standing(view.snapshot, name, wall_s, directive)
        if holds is None:
            continue
        region.override_action = holds.override.action
        region.override_percent = holds.percent
        region.override_target = holds.override.percent
        region.override_expires_s = holds.override.expires_s or 0.0
        drain = state.drains.get(name)
        if (
            drain is not None
            and holds.override.over_s > 0
            and holds.percent != holds.override.percent
        ):
            region.paused = drain.paused
