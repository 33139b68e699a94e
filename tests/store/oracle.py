"""A naive store: one dictionary and one list. What the real ones are compared with."""

from __future__ import annotations

from collections.abc import Sequence

from control_plane.store.base import Change, Delete, Entry, Guard, Operation, Put


class Oracle:
    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.changes: list[Change] = []

    def conflicts(self, guards: Sequence[Guard]) -> set[str]:
        return {g.key for g in guards if g.revision != self.revision_of(g.key)}

    def revision_of(self, key: str) -> int:
        return self.entries[key].revision if key in self.entries else 0

    def changes_something(self, operations: Sequence[Operation]) -> bool:
        return any(isinstance(op, Put) or op.key in self.entries for op in operations)

    def apply(self, operations: Sequence[Operation], revision: int) -> None:
        puts = tuple(Entry(op.key, op.value, revision) for op in operations if isinstance(op, Put))
        deletes = tuple(
            op.key for op in operations if isinstance(op, Delete) and op.key in self.entries
        )
        self.entries.update((entry.key, entry) for entry in puts)
        for key in deletes:
            del self.entries[key]
        self.changes.append(Change(revision, puts, deletes))

    def listing(self, prefix: str) -> tuple[Entry, ...]:
        keys = sorted(key for key in self.entries if key.startswith(prefix))
        return tuple(self.entries[key] for key in keys)

    def after(self, prefix: str, revision: int) -> list[Change]:
        found = []
        for change in self.changes:
            puts = tuple(entry for entry in change.puts if entry.key.startswith(prefix))
            deletes = tuple(key for key in change.deletes if key.startswith(prefix))
            if change.revision > revision and (puts or deletes):
                found.append(Change(change.revision, puts, deletes))
        return found


def sorted_within(change: Change) -> Change:
    """The order of keys within a revision is nobody's promise."""
    puts = tuple(sorted(change.puts, key=lambda entry: entry.key))
    return Change(change.revision, puts, tuple(sorted(change.deletes)))
