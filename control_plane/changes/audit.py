"""The audit: who asked for which change, chained by hash so that nobody rewrites it unseen.

An entry lies in the store as canonical JSON (sorted keys, no spaces), and its hash is the SHA-256
of those bytes. Each entry holds the hash of the one before it and of its change's history entry;
the head, which every change guards, holds the hash of the last. So whoever keeps one hash of the
head elsewhere can tell whether anything up to it was altered, removed, added or reordered. Without
such a hash the chain proves that nobody altered a part of it; whoever can write to the store can
still replace all of it.

Entries from before the chain began prove nothing and are counted apart. The oldest entries go as
new ones come; which one is the oldest is part of the newest. Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Struct

from control_plane import keys
from control_plane.changes.plan import Head


class AuditEntry(Struct, frozen=True, kw_only=True):
    """Who asked for a change, and which safety rules were overruled."""

    number: int
    id: str
    time_s: float
    author: str
    replica: str
    reason: str
    keys: tuple[str, ...]
    forced: tuple[str, ...]  # what each overruled rule had said
    rules: tuple[str, ...] = ()  # and what it is called
    oldest: int = 1  # the number of the oldest entry that is kept after this change
    history: str = ""  # hash of the history entry of this change
    previous: str | None = None  # hash of the entry before; "": the first; None: no part of a chain


class Verified(Struct, frozen=True):
    """What looking through the whole audit found. `broken_at` names the first thing that is
    wrong; empty: the chain holds. `head_hash` is the hash of the last entry."""

    entries: int = 0
    first: int = 0
    last: int = 0
    unchained: int = 0
    head_hash: str = ""
    broken_at: str = ""

    @property
    def intact(self) -> bool:
        return not self.broken_at


def encode(entry: AuditEntry) -> bytes:
    """The canonical form, which is what is stored and what is hashed."""
    return msgspec.json.encode(msgspec.to_builtins(entry), order="sorted")


def decode(data: bytes) -> AuditEntry:
    """Raises `msgspec.MsgspecError`."""
    return msgspec.json.decode(data, type=AuditEntry)


def hash_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def verify(
    head: Head | None,
    newest: Head | None,
    audit: Sequence[tuple[str, bytes]],
    history: Mapping[int, str],
) -> Verified:
    """Look through all of it.

    `head` was read before, `newest` after the rest was: what came and went meanwhile is left out.
    `audit` are keys and values in the store; `history` is number -> hash of the history entry.
    """
    if head is None or newest is None:
        if not audit:
            return Verified()
        return Verified(entries=len(audit), broken_at="there are entries, and the head is missing")
    if head.number < newest.oldest:
        why = "while it was read more changes came in than are kept: look again"
        return Verified(entries=len(audit), broken_at=why)
    held: dict[int, bytes] = {}
    for key, value in audit:
        number = keys.number_of(key)
        if number is None or number > newest.number:
            return Verified(entries=len(audit), broken_at=f"{key} is nothing that a change wrote")
        if newest.oldest <= number <= head.number:
            held[number] = value
    return _walk(head, newest, held, history)


def _walk(
    head: Head, newest: Head, held: Mapping[int, bytes], history: Mapping[int, str]
) -> Verified:
    previous, unchained, last = "", 0, None
    found = Verified(entries=len(held), first=newest.oldest, last=head.number, head_hash=head.hash)

    def broken(number: int, why: str) -> Verified:
        return msgspec.structs.replace(
            found, unchained=unchained, broken_at=f"entry {number}: {why}"
        )

    for number in range(newest.oldest, head.number + 1):
        value = held.get(number)
        if value is None:
            return broken(number, "it is missing")
        try:
            last = decode(value)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            return broken(number, f"it cannot be read: {error}")
        wrong = _wrong(last, number, previous, unchained, newest, history)
        if wrong:
            return broken(number, wrong)
        unchained += last.previous is None
        previous = hash_of(value) if last.previous is not None else ""
    found = msgspec.structs.replace(found, unchained=unchained)
    if last is None or (head.id, head.hash, head.oldest) != (last.id, previous, last.oldest):
        return broken(head.number, "it is not the one that the head names")
    return found


def _wrong(
    entry: AuditEntry,
    number: int,
    previous: str,
    unchained: int,
    newest: Head,
    history: Mapping[int, str],
) -> str:
    """What is wrong with one entry; `unchained` and `previous` are of those before it."""
    if entry.number != number:
        return f"it says that it is entry {entry.number}"
    if number not in history:
        return "its history entry is missing"
    if entry.previous is None:
        first = number - unchained == newest.oldest
        return "" if first else "it is not chained, and those before it are"
    if entry.history != history[number]:
        return "its history entry is not the one that was written with it"
    # What came before the oldest that is kept cannot be compared any more.
    if number > newest.oldest and entry.previous != previous:
        return f"entry {number - 1} is not the one that it was written after"
    return ""
