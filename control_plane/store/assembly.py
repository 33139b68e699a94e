"""Whole revisions from one watch stream's responses. No I/O.

etcd splits what it sends in two ways: a revision's events may spread over several responses (all
but the last marked as fragments), and a response may hold many revisions. A stream that starts
over may also repeat what was seen before. Out come `Change`s, each whole, each once, in order.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from control_plane.store.base import Change, Entry


class Event(msgspec.Struct, frozen=True):
    """One key's change. `value` is None for a delete."""

    key: str
    revision: int
    value: bytes | None
    lease: int = 0


class OutOfOrder(Exception):
    """A stream went back in time; it cannot be trusted any further."""


class Assembly:
    """`after` is the revision up to which everything was given out, and the place to resume."""

    def __init__(self, after: int) -> None:
        self.after = after
        self._revision = 0  # of the events held back; 0 when there are none
        self._puts: list[Entry] = []
        self._deletes: list[str] = []

    def feed(self, events: Iterable[Event], more_to_come: bool) -> list[Change]:
        """Take a response's events; give the revisions that are now known to be whole.

        `more_to_come`: the response is a fragment, its last revision may go on in the next.
        """
        whole = []
        for event in events:
            if event.revision <= self.after:
                continue
            if event.revision != self._revision:
                whole += self._finish()
                if event.revision <= self.after:
                    raise OutOfOrder(f"revision {event.revision} came after {self.after}")
                self._revision = event.revision
            if event.value is None:
                self._deletes.append(event.key)
            else:
                self._puts.append(Entry(event.key, event.value, event.revision, event.lease))
        if not more_to_come:
            whole += self._finish()
        return whole

    def progress(self, revision: int) -> None:
        """The server says that it has sent everything up to `revision`."""
        if not self._revision:
            self.after = max(self.after, revision)

    def _finish(self) -> list[Change]:
        if not self._revision:
            return []
        change = Change(self._revision, tuple(self._puts), tuple(self._deletes))
        self.after = self._revision
        self._revision, self._puts, self._deletes = 0, [], []
        return [change]
