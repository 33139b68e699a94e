"""Between the admin API's messages and what the control plane works with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from control_plane.admin.explain import Explanation
from control_plane.catalog import View
from control_plane.changes.apply import Applied
from control_plane.changes.archive import Kept
from control_plane.changes.audit import Verified
from control_plane.changes.diff import FieldChange
from control_plane.changes.plan import Plan, Wanted
from runtime.validation import InvalidDocument, Problem
from topology import resources as res
from topology.resources import Key, Resource
from topology.wire.gen.tradewind.v1 import admin_pb2 as pb
from topology.wire.gen.tradewind.v1 import resource_pb2

REASON_MAX = 1_000  # characters: it is kept with every change
_HISTORY_BYTES = 2 * 2**20  # one change more may follow

_ACTIONS = {
    "create": pb.Change.ACTION_CREATE,
    "update": pb.Change.ACTION_UPDATE,
    "delete": pb.Change.ACTION_DELETE,
    "unchanged": pb.Change.ACTION_UNCHANGED,
}


def check_reason(request: Any) -> None:
    """Raise `InvalidDocument` where a request's reason is longer than is kept."""
    length = len(getattr(request, "reason", ""))
    if length > REASON_MAX:
        allowed = f"at most {REASON_MAX}"
        raise InvalidDocument([Problem("request", "reason", f"{length} characters", allowed)])


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
        immediate=request.immediate,
    )


def resource_message(resource: Resource) -> resource_pb2.Resource:
    return resource_pb2.Resource(kind=resource.kind, name=resource.name, json=res.encode(resource))


def planned(plan: Plan) -> pb.ApplyResponse:
    """The answer to a dry run."""
    response = pb.ApplyResponse(
        revision=plan.base.revision,
        applied=False,
        warnings=list(plan.warnings),
        staged=plan.staged,
    )
    for change in plan.changes:
        message = response.changes.add(
            key=pb.Key(kind=change.key.kind, name=change.key.name), action=_ACTIONS[change.action]
        )
        _add_fields(message, change.fields)
    for refusal in plan.refusals:
        response.refusals.add(rule=refusal.rule, message=refusal.message)
    for load in plan.forecast.regions:
        response.forecast.add(
            region=load.region,
            before_tokens_per_s=load.now,
            after_tokens_per_s=load.after,
            capacity_tokens_per_s=load.capacity,
            known=not plan.forecast.unknown,
        )
    return response


def _add_fields(change: pb.Change, fields: Iterable[FieldChange]) -> None:
    for field in fields:
        change.fields.add(path=field.path, before=field.before, after=field.after)


def applied(done: Applied) -> pb.ApplyResponse:
    response = planned(done.plan)
    response.revision = done.revision
    response.applied = done.applied
    return response


def history(found: Iterable[Kept], oldest: int) -> pb.HistoryResponse:
    """As many as a message takes: the caller asks again for those before the last."""
    response = pb.HistoryResponse(oldest_number=oldest)
    size = 0
    for kept in found:
        _add_history(response, kept)
        size += response.entries[-1].ByteSize()
        if size > _HISTORY_BYTES:
            break
    return response


def _add_history(response: pb.HistoryResponse, kept: Kept) -> None:
    message = response.entries.add(
        number=kept.number, revision=kept.revision, hash=kept.hash if _chained(kept) else ""
    )
    if kept.audit is not None:
        message.replica = kept.audit.replica
        message.previous = kept.audit.previous or ""
        rules = kept.audit.rules or ("",) * len(kept.audit.forced)
        for rule, said in zip(rules, kept.audit.forced, strict=False):
            message.forced.append(f"{rule}: {said}" if rule else said)
    if kept.history is None:
        message.reason = kept.damaged
        return
    message.author, message.reason = kept.history.author, kept.history.reason
    message.time_s = kept.history.time_s
    for recorded in kept.history.changes:
        key = Key.parse(recorded.key)
        change = message.changes.add(
            key=pb.Key(kind=key.kind, name=key.name), action=_ACTIONS[recorded.action]
        )
        try:
            fields = recorded.fields()
        except InvalidDocument as error:  # of a schema that is not ours any more
            change.fields.add(path="spec", after=f'"{error.problems[0].path}: cannot be read"')
            continue
        _add_fields(change, fields)


def _chained(kept: Kept) -> bool:
    return kept.audit is not None and kept.audit.previous is not None


def verified(found: Verified) -> pb.VerifyAuditResponse:
    return pb.VerifyAuditResponse(
        intact=found.intact,
        entries=found.entries,
        first_number=found.first,
        last_number=found.last,
        head_hash=found.head_hash,
        broken_at=found.broken_at,
        unchained=found.unchained,
    )


def explained(explanation: Explanation, view: View) -> pb.ExplainResponse:
    answer, chosen = explanation.answer, explanation.chosen
    response = pb.ExplainResponse(
        revision=view.snapshot.revision,
        stale_since_s=view.stale_since_s or 0.0,
        place=answer.place,
        name=answer.name,
        edge=answer.edge,
        refusal=explanation.refusal,
        notes=list(explanation.notes),
        demand_class=explanation.demand_class,
        heard=explanation.heard,
    )
    _add_edges(response, explanation)
    for outcome in explanation.outcomes:
        response.regions.add(
            name=outcome.region,
            chosen=outcome is chosen,
            excluded=outcome.excluded,
            why=outcome.why,
            rtt_ms=outcome.rtt_ms,
            share=outcome.share,
            path=outcome.path,
        )
    if chosen is not None:
        response.region = chosen.region
        response.path = chosen.path
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
