"""Staged rollouts: when more nodes get a change, and when nobody keeps it. Pure.

A stage lasts as long as the policy says and until every connected node that is due has taken the
change up. It is over for good when a node refuses the change, or when requests fail more often
at the edges that have it than at the others: then the change is taken back. Both are looked for
while a rollout is paused, too.

Requests are counted from reported rates, and time in steps that are never long, so that neither a
clock that jumps nor a director that was away shortens a stage.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from control_plane.directives.observed import EdgeReport, NodeState, Observed
from control_plane.rollout_record import Counts, RolloutRecord
from topology.snapshot import Snapshot

# How often the counts are written: between writes they are made up anew each second.
WRITE_EVERY_S = 3.0
# The most time that may pass between two rounds and still be counted.
LONGEST_STEP_S = 5.0
# So many errors above what the others' rate explains make a worse rate believable.
ERRORS_MIN = 2.0
_NAMED = 3


def advance(
    record: RolloutRecord, snapshot: Snapshot, observed: Observed, now_s: float
) -> RolloutRecord | None:
    """The record a round further; None where nothing is worth writing.

    `snapshot` is the newest, the change included. Where the status of the result is
    `rolled-back`, the caller takes the change back together with writing it.
    """
    if not record.under_way:
        return None
    revision = record.revision or snapshot.revision
    counted = _counted(record, revision, observed, now_s)
    harm = _refused(counted, revision, observed) or _worse(counted)
    if harm:
        return msgspec.structs.replace(counted, status="rolled-back", why=harm)
    if record.status == "paused":
        return _worth_writing(record, counted)
    if counted.held_s < hold_s(counted):
        return _worth_writing(record, msgspec.structs.replace(counted, why=""))
    waiting = _behind(counted, revision, observed)
    if waiting:
        return _worth_writing(record, msgspec.structs.replace(counted, why=_waits_for(waiting)))
    return _next_stage(counted, now_s)


def hold_s(record: RolloutRecord) -> float:
    """How long the present stage lasts at least, in seconds."""
    return record.policy.canary_hold_s if record.step == 0 else record.policy.step_hold_s


def has_taken_up(node: NodeState, revision: int) -> bool:
    """Whether a node acknowledged the change that was made at `revision`."""
    return node.acked_revision >= revision and not node.staged


def principal_of(node: str) -> str:
    """`edge/tokyo` of `edge/tokyo/0`."""
    return "/".join(node.split("/")[:2])


def _worth_writing(record: RolloutRecord, counted: RolloutRecord) -> RolloutRecord | None:
    since_s = counted.counted_s - record.counted_s
    due = since_s < 0 or since_s >= WRITE_EVERY_S or counted.why != record.why
    return counted if due else None


def _next_stage(record: RolloutRecord, now_s: float) -> RolloutRecord:
    steps = [p for p in record.policy.steps or (100.0,) if p > record.percent]
    if record.percent >= 100.0 or not steps:
        return msgspec.structs.replace(record, status="done", percent=100.0, why="")
    usual = record.counts.rate_without(record.policy.requests_min)
    return msgspec.structs.replace(
        record,
        status="rolling",
        percent=steps[0],
        step=record.step + 1,
        stage_since_s=now_s,
        held_s=0.0,
        counts=Counts(),
        usual_rate=usual if usual >= 0 else record.usual_rate,
        why="",
    )


def _counted(
    record: RolloutRecord, revision: int, observed: Observed, now_s: float
) -> RolloutRecord:
    """With the time and the requests since it was last counted."""
    step_s = min(max(now_s - record.counted_s, 0.0), LONGEST_STEP_S)
    requests, errors = {True: 0.0, False: 0.0}, {True: 0.0, False: 0.0}
    for report in observed.edges.values():
        has = _has(record, revision, observed, report)
        if has is not None:
            requests[has] += sum(load.requests_per_s for load in report.demand.values())
            errors[has] += sum(load.errors_per_s for load in report.demand.values())
    counts = Counts(
        record.counts.requests_with + step_s * requests[True],
        record.counts.errors_with + step_s * errors[True],
        record.counts.requests_without + step_s * requests[False],
        record.counts.errors_without + step_s * errors[False],
    )
    return msgspec.structs.replace(
        record, revision=revision, counts=counts, counted_s=now_s, held_s=record.held_s + step_s
    )


def _has(
    record: RolloutRecord, revision: int, observed: Observed, report: EdgeReport
) -> bool | None:
    """Whether an edge works by the change; None: it is about to."""
    if not record.has(f"edge/{report.edge}"):
        return False
    node = observed.nodes.get(report.node) or observed.nodes.get(f"edge/{report.edge}")
    return True if node is None or has_taken_up(node, revision) else None


def _due(record: RolloutRecord, observed: Observed) -> Iterator[NodeState]:
    for name in sorted(observed.nodes):
        if record.has(principal_of(name)):
            yield observed.nodes[name]


def _refused(record: RolloutRecord, revision: int, observed: Observed) -> str:
    for node in _due(record, observed):
        if node.nack_revision >= revision and not node.staged:
            return f"{node.node} refuses it: {' '.join(node.nack_reason.split()) or 'no reason'}"
    return ""


def _worse(record: RolloutRecord) -> str:
    """At least `requests_min` requests on each side, or before on the other, and an increase
    that is more than the chance failure of one."""
    policy, counts = record.policy, record.counts
    rate = counts.rate_with(policy.requests_min)
    usual = counts.rate_without(policy.requests_min)
    if usual < 0:
        usual = record.usual_rate
    if rate < 0 or usual < 0 or rate - usual <= policy.error_rate_increase:
        return ""
    if counts.errors_with - usual * counts.requests_with < ERRORS_MIN:
        return ""
    return (
        f"{rate:.1%} of {counts.requests_with:.0f} requests fail at edges that have it, "
        f"{usual:.1%} at the others: more than {policy.error_rate_increase:.1%} worse"
    )


def _behind(record: RolloutRecord, revision: int, observed: Observed) -> list[NodeState]:
    """Connected nodes that are due and have not taken it up."""
    return [
        node
        for node in _due(record, observed)
        if node.connected and not has_taken_up(node, revision)
    ]


def _waits_for(nodes: list[NodeState]) -> str:
    named = ", ".join(
        node.node + (" (its replica does not reach the store)" if node.stale else "")
        for node in nodes[:_NAMED]
    )
    more = f" and {len(nodes) - _NAMED} more" if len(nodes) > _NAMED else ""
    return f"waits for {named}{more} to take it up"
