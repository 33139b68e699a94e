"""Between the admin API's messages and what the control plane works with."""

from __future__ import annotations

from collections.abc import Iterable

from control_plane.admin.explain import Explanation
from control_plane.catalog import View
from control_plane.changes.apply import Applied
from control_plane.changes.plan import Plan, Wanted
from control_plane.discovery.session import Session
from control_plane.store.base import StoreStatus
from runtime.validation import InvalidDocument, Problem
from topology import resources as res
from topology.resources import Key, Resource
from topology.wire.gen.tradewind.v1 import admin_pb2 as pb
from topology.wire.gen.tradewind.v1 import resource_pb2

_ACTIONS = {
    "create": pb.Change.ACTION_CREATE,
    "update": pb.Change.ACTION_UPDATE,
    "delete": pb.Change.ACTION_DELETE,
    "unchanged": pb.Change.ACTION_UNCHANGED,
}


def wanted(request: pb.ApplyRequest) -> Wanted:
    """What a request asks for, or `InvalidDocument` with every mistake in every resource."""
    puts: list[Resource] = []
    problems: list[Problem] = []
    for message in request.puts:
        source = f"{message.kind}/{message.name}"
        try:
            resource = res.decode(message.json, source)
        except InvalidDocument as error:
            problems += error.problems
            continue
        if str(resource.key) != source:
            problems.append(Problem(source, "name", str(resource.key), f"{source}, as announced"))
        puts.append(resource)
    if problems:
        raise InvalidDocument(problems)
    return Wanted(
        puts=tuple(puts),
        removes=tuple(Key(key.kind, key.name) for key in request.removes),
        prune=request.prune,
        force=tuple(request.force),
        reason=request.reason,
    )


def resource_message(resource: Resource) -> resource_pb2.Resource:
    return resource_pb2.Resource(kind=resource.kind, name=resource.name, json=res.encode(resource))


def planned(plan: Plan) -> pb.ApplyResponse:
    """The answer to a dry run."""
    response = pb.ApplyResponse(
        revision=plan.base.revision, applied=False, warnings=list(plan.warnings)
    )
    for change in plan.changes:
        message = response.changes.add(
            key=pb.Key(kind=change.key.kind, name=change.key.name), action=_ACTIONS[change.action]
        )
        for field in change.fields:
            message.fields.add(path=field.path, before=field.before, after=field.after)
    for refusal in plan.refusals:
        response.refusals.add(rule=refusal.rule, message=refusal.message)
    return response


def applied(done: Applied) -> pb.ApplyResponse:
    response = planned(done.plan)
    response.revision = done.revision
    response.applied = done.applied
    return response


def status(
    replica: str,
    store: StoreStatus,
    view: View,
    sessions: Iterable[Session],
    now_s: float,
    wall_s: float,
    started_s: float,
) -> pb.StatusResponse:
    response = pb.StatusResponse(
        replica=replica,
        now_s=wall_s,
        started_s=started_s,
        revision=view.snapshot.revision,
        stale_since_s=view.stale_since_s or 0.0,
        problems=[str(problem) for problem in view.problems],
    )
    response.store.available = store.available
    response.store.since_s = store.since_s
    response.store.detail = store.detail
    for session in sorted(sessions, key=lambda s: s.node_id):
        response.nodes.append(_node(session, now_s))
    return response


def _node(session: Session, now_s: float) -> pb.NodeStatus:
    node = pb.NodeStatus(
        id=session.node_id,
        role=session.principal.role,
        connected=session.connected,
        since_s=session.since_s,
        acked_revision=session.acked_revision,
        sent_revision=session.sent_revision,
        lag_s=session.unanswered_for_s(now_s),
        unsupported=list(session.unsupported),
    )
    if session.nack is not None:
        node.nack_revision = session.nack.revision
        node.nack_reason = session.nack.reason
        node.nack_s = session.nack.at_s
    return node


def explained(explanation: Explanation, view: View) -> pb.ExplainResponse:
    answer, decision = explanation.answer, explanation.decision
    response = pb.ExplainResponse(
        revision=view.snapshot.revision,
        stale_since_s=view.stale_since_s or 0.0,
        place=answer.place,
        name=answer.name,
        edge=answer.edge,
        refusal=explanation.refusal,
        notes=list(explanation.notes),
    )
    _add_edges(response, explanation)
    for index, candidate in enumerate(decision.candidates):
        response.regions.add(
            name=candidate.region,
            chosen=index == 0,
            why=f"{candidate.why}, by Route/{decision.route}",
            rtt_ms=candidate.rtt_ms,
        )
    for exclusion in decision.excluded:
        response.regions.add(
            name=exclusion.region, excluded=True, why=f"{exclusion.rule}: {exclusion.why}"
        )
    if decision.candidates:
        response.region = decision.candidates[0].region
        response.path = decision.candidates[0].path
    return response


def _add_edges(response: pb.ExplainResponse, explanation: Explanation) -> None:
    answer = explanation.answer
    if answer.choice is None:
        response.edges.add(name=answer.edge, chosen=True, why="given with the question")
        return
    for candidate in answer.choice.candidates:
        far = "" if candidate.distance_km is None else f"{candidate.distance_km:,.0f} km away"
        response.edges.add(
            name=candidate.edge,
            chosen=candidate.edge == answer.edge,
            excluded=candidate.edge not in answer.choice.edges,
            why=far or answer.choice.reason,
            distance_km=candidate.distance_km or 0.0,
        )
