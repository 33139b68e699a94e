"""What was promised to whom, and whether it was kept.

Everything that is asked of the system while it is hurt goes into a `Journal`: each admin write
with what became of it, each client's request with how it ended. Afterwards `mistakes` compares
the journal with what the store really holds. Pure.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

import msgspec
from msgspec import Struct

from control_plane import keys
from control_plane.store.base import Entry
from topology.resources import Key

MARK = "deadline_ms"  # the field of a Tenant that says which write it comes from
FIRST_MARK = 10_000
SETUP = "setup"
SLOW_S = 5.0  # a request that took longer has waited for something that it must not wait for


class Fate(enum.Enum):
    """What the writer was told."""

    ACKNOWLEDGED = "acknowledged"
    REFUSED = "refused"  # nothing was changed; dry runs count among these
    AMBIGUOUS = "ambiguous"  # nobody can say


class Write(Struct):
    """One admin write: puts of `puts`, or removals of `removes`, all marked with `number`."""

    number: int
    reason: str  # unique; it lies in the history entry
    mark: int  # unique too: MARK of everything that it puts
    puts: tuple[str, ...]
    removes: tuple[str, ...] = ()
    fate: Fate = Fate.AMBIGUOUS
    revision: int = 0
    changed: bool = True  # false: acknowledged, and there was nothing to do
    said: str = ""
    took_s: float = 0.0


class Request(Struct):
    """One client's request. `edges`: which it was sent to, the last one answered, if any."""

    at_s: float
    took_s: float
    edges: tuple[str, ...]
    region: str
    error: str  # empty: answered, whole and right


class Journal:
    """`next_write` before anything is sent, so that what is never heard of again is known too.

    `before`: the journal of the scenario before on the same system, whose changes are there too.
    """

    def __init__(self, name: str, before: Journal | None = None) -> None:
        self.name = name
        self._first_mark = before.next_mark if before else FIRST_MARK
        self.writes: list[Write] = []
        self.requests: list[Request] = []
        self.sights: list[str] = []  # what a node saw and should not have
        self.down: dict[str, list[float]] = {}  # edge -> times of being stopped and started
        # Reasons of changes that are no `Write`.
        self.expected: set[str] = set(before.expected) if before else {SETUP}

    @property
    def next_mark(self) -> int:
        return self._first_mark + len(self.writes)

    def next_write(self, puts: Iterable[str], removes: Iterable[str] = ()) -> Write:
        number = len(self.writes)
        reason = f"{self.name} write {number}"
        write = Write(number, reason, self.next_mark, tuple(puts), tuple(removes))
        self.writes.append(write)
        return write

    def of(self, fate: Fate) -> list[Write]:
        return [write for write in self.writes if write.fate is fate]

    def summary(self) -> str:
        fates = Counter(write.fate.value for write in self.writes)
        why = Counter(write.said.partition(":")[0] for write in self.of(Fate.REFUSED))
        said = ", ".join(f"{count} {fate}" for fate, count in sorted(fates.items()))
        said += "".join(f"; {count} {code}" for code, count in sorted(why.items()))
        failed = sum(bool(request.error) for request in self.requests)
        slowest = max((request.took_s for request in self.requests), default=0.0)
        moved = sum(len(request.edges) > 1 for request in self.requests)
        regions = Counter(request.region for request in self.requests)
        served = ", ".join(f"{count} by {name or 'none'}" for name, count in regions.items())
        return (
            f"{self.name}: {len(self.writes)} writes ({said}); {len(self.requests)} requests"
            f" ({served}), {failed} failed, {moved} moved to another edge,"
            f" the slowest {slowest:.2f} s"
        )


class Found(Struct, frozen=True):
    """What the store holds: entries under RESOURCES, HISTORY and AUDIT, as listed at the end."""

    resources: tuple[Entry, ...]
    history: tuple[Entry, ...]
    audit: tuple[Entry, ...]


class _Record(Struct, frozen=True):
    """A history entry and where it lies."""

    number: int
    revision: int
    reason: str
    author: str
    changes: tuple[dict[str, Any], ...]


def mistakes(journal: Journal, found: Found, others: frozenset[str] = frozenset()) -> list[str]:
    """Every promise that was broken. `others`: authors whose changes are none of the journal's."""
    records = [_record(entry) for entry in found.history]
    ours = [record for record in records if record.reason.startswith(f"{journal.name} write ")]
    out = _numbering(found, records)
    out += _promises(journal, ours)
    out += _phantoms(journal, records, ours, others)
    out += _replayed(records, found.resources)
    out += _requests(journal)
    return out + journal.sights


def _record(entry: Entry) -> _Record:
    value = msgspec.json.decode(entry.value)
    changes = tuple(value["changes"])
    return _Record(value["number"], entry.revision, value["reason"], value["author"], changes)


def _numbering(found: Found, records: list[_Record]) -> list[str]:
    out = []
    numbers = [record.number for record in records]
    if numbers and numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        out.append(f"history has gaps: {_gaps(numbers)}")
    if sorted(record.revision for record in records) != [record.revision for record in records]:
        out.append("history's numbers and revisions are not in the same order")
    audited = {_number(e): e.revision for e in found.audit}
    if audited != {record.number: record.revision for record in records}:
        out.append("history and audit were not written together")
    head = next((entry for entry in found.resources if entry.key == keys.HEAD), None)
    if head is not None and numbers:
        last = msgspec.json.decode(head.value)["number"]
        if (last, head.revision) != (numbers[-1], records[-1].revision):
            out.append(f"the head says {last}, history ends with {numbers[-1]}")
    return out


def _number(entry: Entry) -> int:
    return int(entry.key.rpartition("/")[2])


def _gaps(numbers: list[int]) -> str:
    steps = pairwise(numbers)
    return ", ".join(f"{a} -> {b}" for a, b in steps if b != a + 1)


def _promises(journal: Journal, ours: list[_Record]) -> list[str]:
    by_reason: dict[str, list[_Record]] = {}
    for record in ours:
        by_reason.setdefault(record.reason, []).append(record)
    out = []
    for write in journal.writes:
        made = by_reason.get(write.reason, [])
        if len(made) > 1:
            out.append(f"{write.reason} was made {len(made)} times")
        if write.fate is Fate.REFUSED and made:
            out.append(f"{write.reason} was refused ({write.said}), and was made")
        if write.fate is Fate.ACKNOWLEDGED and write.changed:
            if not made:
                out.append(f"{write.reason} was acknowledged at {write.revision}, and is lost")
            elif made[0].revision != write.revision:
                out.append(f"{write.reason} lies at {made[0].revision}, not {write.revision}")
        for record in made:
            out += _whole(write, record)
    return out


def _whole(write: Write, record: _Record) -> list[str]:
    """Every part of it, and nothing else. What was as wanted already is no part of it."""
    put = {Key.parse(c["key"]).name: c["after"] for c in record.changes if c["after"]}
    removed = {Key.parse(c["key"]).name for c in record.changes if not c["after"]}
    wrong = [name for name, after in put.items() if after["spec"].get(MARK) != write.mark]
    if set(put) != set(write.puts) or wrong or not removed <= set(write.removes):
        return [f"{write.reason} was made in part, or otherwise: {sorted(put)} {sorted(removed)}"]
    return []


def _phantoms(
    journal: Journal, records: list[_Record], ours: list[_Record], others: frozenset[str]
) -> list[str]:
    known = {write.reason for write in journal.writes}
    out = [f"nobody asked for {r.reason!r}" for r in ours if r.reason not in known]
    for record in records:
        strange = " write " not in record.reason and record.reason not in journal.expected
        if strange and record.author.partition("/")[0] not in others:
            out.append(f"nobody asked for {record.reason!r} of {record.author}")
    return out


def _replayed(records: list[_Record], resources: tuple[Entry, ...]) -> list[str]:
    """History, carried out again, is what the store holds: to the field and the revision."""
    expected: dict[str, tuple[int, Any]] = {}
    for record in records:
        for change in record.changes:
            if change["after"] is None:
                expected.pop(change["key"], None)
            else:
                expected[change["key"]] = (record.revision, change["after"]["spec"])
    held = {
        str(keys.resource_at(entry.key)): (entry.revision, msgspec.json.decode(entry.value)["spec"])
        for entry in resources
        if entry.key not in keys.RESERVED
    }
    return [
        f"{key} is {_short(held.get(key))}, by history {_short(expected.get(key))}"
        for key in sorted(expected.keys() | held.keys())
        if not _same(expected.get(key), held.get(key))
    ]


def _same(expected: tuple[int, Any] | None, held: tuple[int, Any] | None) -> bool:
    if expected is None or held is None:
        return expected is held
    # Both leave out what has its default, each in its own way: what both name must agree.
    named = expected[1].keys() & held[1].keys()
    return expected[0] == held[0] and all(expected[1][n] == held[1][n] for n in named)


def _requests(journal: Journal) -> list[str]:
    out = [
        f"a request to {', '.join(r.edges)} failed after {r.took_s:.2f} s: {r.error}"
        for r in journal.requests
        if r.error
    ]
    out += [
        f"a request to {r.edges[-1]} took {r.took_s:.2f} s"
        for r in journal.requests
        if r.took_s > SLOW_S and not r.error
    ]
    for request in journal.requests:
        for edge in request.edges[:-1]:
            if not _was_down(journal.down.get(edge, []), request):
                out.append(f"{edge} did not serve a request although nobody had touched it")
    return out


def _was_down(times: list[float], request: Request) -> bool:
    """Whether the edge was down, by our hand, while the request was under way."""
    pairs = zip(times[::2], [*times[1::2], float("inf")], strict=False)
    end_s = request.at_s + request.took_s
    return any(stopped <= end_s and request.at_s <= started for stopped, started in pairs)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 200 else text[:199] + "…"


def pairs_that_differ(marks: Mapping[str, int]) -> list[str]:
    """Of Tenants by name (`<slot>-a`, `<slot>-b`): pairs that are not from the same write."""
    slots = {name.rpartition("-")[0] for name in marks}
    return [
        f"half a write was seen: {slot} is {marks.get(slot + '-a')} and {marks.get(slot + '-b')}"
        for slot in sorted(slots)
        if marks.get(f"{slot}-a") != marks.get(f"{slot}-b")
    ]
