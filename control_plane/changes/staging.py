"""Whether a change is rolled out in stages, and the record of that, written along with it. Pure.

What is staged: a change of anything but Overrides, where the Policy in force before it says so,
unless it asks to be immediate or there was nothing to serve before. One rollout at a time: while
one is under way a further change is refused by the rule `rollout`. Forced, it joins: the nodes
that have the first change get the second at once, the others get both later, and an abort takes
both back. Forced and immediate, every node gets it at once, and an abort leaves it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from control_plane.changes.errors import ROLLOUT, Refusal
from control_plane.changes.history import stored
from control_plane.changes.plan import Change, Plan
from control_plane.rollout_record import Counts, RolloutRecord, snapshot_before
from topology import resources as res
from topology.policy import PolicySpec, RolloutPolicy
from topology.resources import Key, Resource
from topology.snapshot import Snapshot

Document = dict[str, Any]


def judged(plan: Plan) -> Plan:
    """`plan` with the word of the rule `rollout`, and with whether it begins or joins one."""
    under_way = _under_way(plan)
    if not _staged_kinds(plan):
        return plan
    if under_way is None:
        return msgspec.structs.replace(plan, staged=_policy(plan) is not None)
    plan = msgspec.structs.replace(plan, staged=not plan.wanted.immediate)
    refusal = Refusal(ROLLOUT, _message(under_way))
    if ROLLOUT in plan.wanted.force:
        return msgspec.structs.replace(plan, forced=(*plan.forced, refusal))
    return msgspec.structs.replace(plan, refusals=(*plan.refusals, refusal))


def record_of(plan: Plan, author: str, now_s: float) -> RolloutRecord | None:
    """What is to be written under `keys.ROLLOUT` in the transaction of `plan`; None: nothing.

    Raises `InvalidDocument` where nodes that wait would be left with what does not fit together.
    """
    changes = _staged_kinds(plan)
    if not changes:
        return None
    under_way = _under_way(plan)
    if under_way is not None:
        record = _joined(under_way, plan, changes, author, now_s)
        snapshot_before(record, _after(plan))
        return record
    policy = _policy(plan)
    return None if policy is None else _begun(policy, plan, changes, author, now_s)


def touched_with(plan: Plan) -> frozenset[Key]:
    """All that an abort would take back, where `plan` joins a rollout; else nothing."""
    under_way = _under_way(plan)
    joins = plan.staged and ROLLOUT in plan.wanted.force and _staged_kinds(plan)
    if under_way is None or not joins:
        return frozenset()
    return frozenset(under_way.keys) | {change.key for change in _staged_kinds(plan)}


def taken_back(
    record: RolloutRecord, held: Iterable[Resource]
) -> tuple[tuple[Resource, ...], tuple[Key, ...]]:
    """What to put and what to remove, to have everything that the rollout touched as it was.

    Overrides stay, those of regions that only it brought excepted. Raises `InvalidDocument`.
    """
    now = {resource.key: resource for resource in held}
    puts: list[Resource] = []
    removes: set[Key] = set()
    for name, document in record.before.items():
        key = Key.parse(name)
        there = now.get(key)
        if document is None:
            removes |= {key} if there is not None else set()
            continue
        resource = res.parse(document, f"{name} before the rollout")
        if there is None or there.spec != resource.spec:
            puts.append(msgspec.structs.replace(resource, revision=0))
    for resource in now.values():
        region = getattr(resource.spec, "region", "") if resource.kind == "Override" else ""
        if Key("Region", region) in removes:
            removes.add(resource.key)
    return tuple(puts), tuple(sorted(removes))


def _staged_kinds(plan: Plan) -> list[Change]:
    return [change for change in plan.effective if change.key.kind != "Override"]


def _under_way(plan: Plan) -> RolloutRecord | None:
    record = plan.base.rollout
    return record if record is not None and record.under_way else None


def _policy(plan: Plan) -> RolloutPolicy | None:
    """By which a change is staged: the one in force before it."""
    held = plan.base.resources
    if plan.wanted.immediate or not any(key.kind == "Region" for key in held):
        return None
    resource = held.get(Key("Policy", "default"))
    spec = resource.spec if resource is not None else None
    return spec.rollout if isinstance(spec, PolicySpec) else None


def _message(record: RolloutRecord) -> str:
    why = f" ({record.reason})" if record.reason else ""
    return (
        f"change {record.number} by {record.author}{why} is being rolled out and has reached "
        f"{record.percent:g}% of the nodes: wait for it, or `tradewind rollout promote|abort`"
    )


def _begun(
    policy: RolloutPolicy, plan: Plan, changes: list[Change], author: str, now_s: float
) -> RolloutRecord:
    return RolloutRecord(
        number=plan.base.head.number + 1,
        author=author,
        reason=plan.wanted.reason,
        started_s=now_s,
        status="canary",
        percent=policy.canary_percent,
        canaries=policy.canaries,
        stage_since_s=now_s,
        before={str(change.key): _document(change.before) for change in changes},
        base_revision=plan.base.revision,
        policy=policy,
        counted_s=now_s,
    )


def _joined(
    record: RolloutRecord, plan: Plan, changes: list[Change], author: str, now_s: float
) -> RolloutRecord:
    number = plan.base.head.number + 1
    if plan.wanted.immediate:
        # For those who wait as well: it is in `before` wherever the rollout touched the same.
        new = {
            str(change.key): _document(
                stored(change.after, author, now_s) if change.after else None
            )
            for change in changes
            if str(change.key) in record.before
        }
        return msgspec.structs.replace(record, before=record.before | new)
    old = {str(change.key): _document(change.before) for change in changes}
    return msgspec.structs.replace(
        record,
        before=old | record.before,
        joined=(*record.joined, number),
        revision=0,
        base_revision=plan.base.revision,
        stage_since_s=now_s,
        counts=Counts(),
        counted_s=now_s,
        held_s=0.0,
    )


def _document(resource: Resource | None) -> Document | None:
    return None if resource is None else res.to_document(resource)


def _after(plan: Plan) -> Snapshot:
    held = dict(plan.base.resources)
    for change in plan.effective:
        if change.after is None:
            held.pop(change.key, None)
        else:
            held[change.key] = change.after
    return Snapshot.build(plan.base.revision, held.values())
