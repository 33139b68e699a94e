"""Read history and audit from the store, in pieces: ten thousand changes are kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import msgspec
from msgspec import Struct

from control_plane import keys
from control_plane.changes import audit, history
from control_plane.changes.audit import AuditEntry, Verified
from control_plane.changes.errors import HistoryDamaged, UnknownRevision
from control_plane.changes.history import HistoryEntry
from control_plane.changes.plan import Head, head_of
from control_plane.store.base import Entry, Store

LIMIT_MAX = 1_000
PAGE_BYTES = 8 * 2**20
_BLOCK = 10  # numbers that share all but their last digit are listed together
_AT_ONCE = 4  # blocks


class Kept(Struct, frozen=True):
    """One change as it is kept. `damaged` says why `history` is missing."""

    number: int
    revision: int
    history: HistoryEntry | None
    audit: AuditEntry | None
    hash: str  # of the audit entry
    damaged: str = ""
    size: int = 0  # bytes in the store

    def concerns(self, kind: str, name: str) -> bool:
        """Whether the change touched the resource, or one of the kind; empty: any."""
        if not kind or self.history is None:
            return not kind
        wanted = f"{kind}/{name}"
        return any(
            change.key == wanted if name else change.key.startswith(wanted)
            for change in self.history.changes
        )


class Archive:
    """Every call may raise `StoreUnavailable`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def head(self) -> Head:
        entry = await self._store.get(keys.HEAD)
        head = head_of(entry)
        return head if head is not None else await self.mended()

    async def mended(self) -> Head:
        """The head as audit has it, for where it is missing or somebody else wrote over it."""
        entries = (await self._store.list(keys.AUDIT)).entries
        numbered = [(n, e) for e in entries if (n := keys.number_of(e.key)) is not None]
        if not numbered:
            return Head()
        number, last = numbered[-1]
        try:
            entry = audit.decode(last.value)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return Head(number, oldest=numbered[0][0])
        chained = entry.previous is not None
        return Head(number, entry.id, audit.hash_of(last.value) if chained else "", entry.oldest)

    async def page(
        self, limit: int, before: int = 0, kind: str = "", name: str = ""
    ) -> tuple[list[Kept], int]:
        """The newest changes first, at most `limit` and not many more than `PAGE_BYTES`, older
        than number `before`; and the number of the oldest that is kept."""
        head = await self.head()
        newest = min(head.number, before - 1) if before else head.number
        found: list[Kept] = []
        for numbers in _chunks(newest, head.oldest):
            there = await self._kept(numbers)
            found += [kept for kept in there if kept.concerns(kind, name)]
            if not there or len(found) >= limit or sum(k.size for k in found) > PAGE_BYTES:
                break  # numbers without entries come of a head that somebody else wrote
        return found[:limit], head.oldest

    async def since(self, head: Head, revision: int) -> list[HistoryEntry]:
        """Every change after the one at `revision`, which must be one that is kept, up to `head`.

        Raises `UnknownRevision` and `HistoryDamaged`.
        """
        later: list[HistoryEntry] = []
        oldest = 0
        for numbers in _chunks(head.number, head.oldest):
            held = {kept.number: kept for kept in await self._kept(numbers)}
            for number in numbers:
                kept = held.get(number)
                if kept is None:
                    raise HistoryDamaged(number, "it is missing")
                if kept.revision == revision:
                    return later
                if kept.revision < revision:
                    raise _unknown(revision, kept.revision)
                if kept.history is None:
                    raise HistoryDamaged(number, kept.damaged)
                later.append(kept.history)
                oldest = kept.revision
        raise UnknownRevision(
            f"revision {revision} is older than the history that is kept",
            hint=f"the oldest change that is kept is at revision {oldest}"
            if oldest
            else "nothing was changed yet",
        )

    async def verify(self) -> Verified:
        """Look through the whole audit. See `audit.verify`."""
        first = head_of(await self._store.get(keys.HEAD))
        entries = (await self._store.list(keys.AUDIT)).entries
        digests: dict[int, str] = {}
        for numbers in _chunks(first.number, first.oldest) if first is not None else ():
            there = await self._entries(keys.of_history, numbers)
            if not there:
                break  # whatever the head says: the first that is missing is told
            for entry in there:
                number = keys.number_of(entry.key)
                if number is not None:
                    digests[number] = audit.hash_of(entry.value)
        newest = head_of(await self._store.get(keys.HEAD))
        found = [(entry.key, entry.value) for entry in entries]
        return await asyncio.to_thread(audit.verify, first, newest, found, digests)

    async def _kept(self, numbers: range) -> list[Kept]:
        """Those of `numbers` (descending) that there are, in this order."""
        audits = await self._entries(keys.of_audit, numbers)
        entries = await self._entries(keys.of_history, numbers)
        by_number = {keys.number_of(entry.key): entry for entry in audits}
        found = {keys.number_of(entry.key): entry for entry in entries}
        return [_kept(n, found[n], by_number.get(n)) for n in numbers if n in found]

    async def _entries(self, of: Callable[[int], str], numbers: range) -> list[Entry]:
        blocks = sorted({number // _BLOCK for number in numbers})
        prefixes = [of(block * _BLOCK)[:-1] for block in blocks]
        listings = await asyncio.gather(*(self._store.list(prefix) for prefix in prefixes))
        return [entry for listing in listings for entry in listing.entries]


def _chunks(newest: int, oldest: int) -> Iterator[range]:
    """From the newest number down to the oldest, in pieces that end where blocks do."""
    while newest >= max(oldest, 1):
        last = max(oldest, (newest // _BLOCK - _AT_ONCE + 1) * _BLOCK, 1)
        yield range(newest, last - 1, -1)
        newest = last - 1


def _kept(number: int, entry: Entry, audited: Entry | None) -> Kept:
    told, digest, damaged, size = None, "", "", len(entry.value)
    if audited is not None:
        digest, size = audit.hash_of(audited.value), size + len(audited.value)
        try:
            told = audit.decode(audited.value)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            damaged = f"its audit entry cannot be read: {error}"
    try:
        held = history.decode(entry.value, number)
    except HistoryDamaged as error:
        return Kept(number, entry.revision, None, told, digest, error.message, size)
    return Kept(number, entry.revision, held, told, digest, damaged, size)


def _unknown(revision: int, nearest: int) -> UnknownRevision:
    return UnknownRevision(
        f"no change was made at revision {revision}",
        hint=f"the last one before it was at {nearest}; `tradewind history` lists them",
    )
