"""What a change leaves behind, written in the same transaction: history, audit, the new head.

History says what was changed, for people who look back and for going back; audit says who did
it and why. Both are numbered like the change.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from control_plane import keys
from control_plane.changes.plan import Change, Head, Plan
from control_plane.store.base import Put
from topology import resources as res
from topology.resources import Resource


class Recorded(Struct, frozen=True):
    """One resource in a history entry; documents as `tradewind get` shows them."""

    key: str
    action: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None


class HistoryEntry(Struct, frozen=True):
    """One change. Its store revision is that of the key it lies under."""

    number: int
    id: str
    time_s: float  # Unix time, by the replica that made the change
    author: str  # role/name of the certificate that asked
    reason: str
    changes: tuple[Recorded, ...]


class AuditEntry(Struct, frozen=True):
    """Who asked for a change, and which safety rules were overruled."""

    number: int
    id: str
    time_s: float
    author: str
    replica: str
    reason: str
    keys: tuple[str, ...]
    forced: tuple[str, ...]  # what each overruled rule had said


def records(
    plan: Plan, change_id: str, author: str, replica: str, now_s: float
) -> tuple[Put, Put, Put]:
    """The new head, the history entry and the audit entry of `plan`."""
    number = plan.base.head.number + 1
    history = HistoryEntry(
        number=number,
        id=change_id,
        time_s=now_s,
        author=author,
        reason=plan.wanted.reason,
        changes=tuple(_recorded(change, author, now_s) for change in plan.effective),
    )
    audit = AuditEntry(
        number=number,
        id=change_id,
        time_s=now_s,
        author=author,
        replica=replica,
        reason=plan.wanted.reason,
        keys=tuple(str(change.key) for change in plan.effective),
        forced=tuple(refusal.message for refusal in plan.forced),
    )
    return (
        Put(keys.HEAD, msgspec.json.encode(Head(number, change_id))),
        Put(keys.of_history(number), msgspec.json.encode(history)),
        Put(keys.of_audit(number), msgspec.json.encode(audit)),
    )


def stored(resource: Resource, author: str, now_s: float) -> Resource:
    """The resource as it is written: by this author, now, its revision left to the store."""
    return msgspec.structs.replace(resource, author=author, time_s=now_s, revision=0)


def _recorded(change: Change, author: str, now_s: float) -> Recorded:
    after = stored(change.after, author, now_s) if change.after is not None else None
    return Recorded(
        key=str(change.key),
        action=change.action,
        before=res.to_document(change.before) if change.before is not None else None,
        after=res.to_document(after) if after is not None else None,
    )
