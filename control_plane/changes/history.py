"""What a change leaves behind, written in the same transaction: history, audit, the new head.

History says what was changed, for people who look back and for going back; audit says who did
it and why. Both are numbered like the change, and the oldest go as new ones come. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from control_plane import keys
from control_plane.changes import audit
from control_plane.changes.audit import AuditEntry
from control_plane.changes.diff import FieldChange, field_changes
from control_plane.changes.errors import HistoryDamaged
from control_plane.changes.plan import Action, Change, Head, Plan
from control_plane.store.base import Delete, Operation, Put
from runtime.validation import InvalidDocument
from topology import resources as res
from topology.resources import Key, Resource

KEEP = 10_000  # changes of which history and audit are kept, unless the settings say otherwise
DROPPED_AT_ONCE = 2  # with one change, at most: two operations of its transaction each
# Head, history and audit, and what is dropped.
OPERATIONS = 3 + 2 * DROPPED_AT_ONCE


class Recorded(Struct, frozen=True):
    """One resource in a history entry; documents as `tradewind get` shows them."""

    key: str
    action: Action
    before: dict[str, Any] | None
    after: dict[str, Any] | None

    def fields(self) -> tuple[FieldChange, ...]:
        """What differed. Raises `InvalidDocument` for documents that cannot be read any more."""
        return field_changes(_parsed(self.before, self.key), _parsed(self.after, self.key))


class HistoryEntry(Struct, frozen=True):
    """One change. Its store revision is that of the key it lies under."""

    number: int
    id: str
    time_s: float  # Unix time, by the replica that made the change
    author: str  # role/name of the certificate that asked
    reason: str
    changes: tuple[Recorded, ...]


class Undoing(Struct, frozen=True):
    """What makes everything as it was: resources to put, and to remove."""

    puts: tuple[Resource, ...]
    removes: tuple[Key, ...]


def decode(data: bytes, number: int) -> HistoryEntry:
    """The entry of change `number`. Raises `HistoryDamaged`."""
    try:
        entry = msgspec.json.decode(data, type=HistoryEntry)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise HistoryDamaged(number, str(error)) from error
    if entry.number != number:
        raise HistoryDamaged(number, f"it says that it is of change {entry.number}")
    return entry


def records(
    plan: Plan, change_id: str, author: str, replica: str, now_s: float, keep: int = KEEP
) -> list[Operation]:
    """The new head, the history entry and the audit entry of `plan`, and what they push out."""
    head = plan.base.head
    number = head.number + 1
    oldest = max(head.oldest, min(head.oldest + DROPPED_AT_ONCE, number - keep + 1))
    history = msgspec.json.encode(
        HistoryEntry(
            number=number,
            id=change_id,
            time_s=now_s,
            author=author,
            reason=plan.wanted.reason,
            changes=tuple(_recorded(change, author, now_s) for change in plan.effective),
        )
    )
    entry = audit.encode(
        AuditEntry(
            number=number,
            id=change_id,
            time_s=now_s,
            author=author,
            replica=replica,
            reason=plan.wanted.reason,
            keys=tuple(str(change.key) for change in plan.effective),
            forced=tuple(refusal.message for refusal in plan.forced),
            rules=tuple(refusal.rule for refusal in plan.forced),
            oldest=oldest,
            history=audit.hash_of(history),
            previous=head.hash,
        )
    )
    new_head = Head(number, change_id, audit.hash_of(entry), oldest)
    dropped = range(head.oldest, oldest)
    return [
        Put(keys.HEAD, msgspec.json.encode(new_head)),
        Put(keys.of_history(number), history),
        Put(keys.of_audit(number), entry),
        *(Delete(keys.of_history(n)) for n in dropped),
        *(Delete(keys.of_audit(n)) for n in dropped),
    ]


def stored(resource: Resource, author: str, now_s: float) -> Resource:
    """The resource as it is written: by this author, now, its revision left to the store."""
    return msgspec.structs.replace(resource, author=author, time_s=now_s, revision=0)


def undo(held: Mapping[Key, Resource], later: Iterable[HistoryEntry]) -> Undoing:
    """What takes all of `later` back: every change after the one to return to, none left out.

    Of each resource that they touched, the version of before the first of them counts, whatever
    happened to it afterwards. Overrides are left as they are: they are decisions about regions as
    those are today. Raises `HistoryDamaged`.
    """
    first: dict[Key, tuple[int, Recorded]] = {}
    for entry in sorted(later, key=lambda entry: entry.number):
        for recorded in entry.changes:
            first.setdefault(Key.parse(recorded.key), (entry.number, recorded))
    puts: list[Resource] = []
    removes: list[Key] = []
    for key, (number, recorded) in first.items():
        if key.kind == "Override":
            continue
        before = _before(number, key, recorded)
        now = held.get(key)
        if before is None and now is not None:
            removes.append(key)
        elif before is not None and (now is None or now.spec != before.spec):
            puts.append(before)
    return Undoing(tuple(puts), tuple(removes))


def _before(number: int, key: Key, recorded: Recorded) -> Resource | None:
    try:
        resource = _parsed(recorded.before, recorded.key)
    except InvalidDocument as error:
        raise HistoryDamaged(number, str(error)) from error
    if resource is None:
        return None
    if resource.key != key:
        raise HistoryDamaged(number, f"{resource.key} under the name of {key}")
    return msgspec.structs.replace(resource, revision=0)


def _parsed(document: dict[str, Any] | None, source: str) -> Resource | None:
    return res.parse(document, source) if document is not None else None


def _recorded(change: Change, author: str, now_s: float) -> Recorded:
    after = stored(change.after, author, now_s) if change.after is not None else None
    return Recorded(
        key=str(change.key),
        action=change.action,
        before=res.to_document(change.before) if change.before is not None else None,
        after=res.to_document(after) if after is not None else None,
    )
