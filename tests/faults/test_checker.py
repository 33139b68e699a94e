"""The checker finds each kind of broken promise: a harness that cannot fail proves nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from control_plane import keys
from control_plane.store.base import Entry
from tests.faults.checker import MARK, Fate, Found, Journal, Request, Write, mistakes
from topology.resources import Key


class Store:
    """What the store would hold after these writes."""

    def __init__(self, *made: Write, revision: int = 10) -> None:
        self.held: dict[str, tuple[int, Any]] = {}
        self.history: list[tuple[int, int, dict[str, Any]]] = []  # number, revision, value
        for number, write in enumerate(made, 5):
            revision += 3
            changes = []
            for name in write.puts:
                document = {"kind": "Tenant", "name": name, "spec": {MARK: write.mark}}
                self.held[f"Tenant/{name}"] = (revision, document)
                changes.append({"key": f"Tenant/{name}", "before": None, "after": document})
            for name in write.removes:
                gone = self.held.pop(f"Tenant/{name}", None)
                if gone is not None:
                    change = {"key": f"Tenant/{name}", "before": gone[1], "after": None}
                    changes.append(change)
            value = {"reason": write.reason, "author": "admin/a", "changes": changes}
            self.history.append((number, revision, value | {"number": number}))
        self.audit = [(number, revision) for number, revision, _ in self.history]
        self.head = self.audit[-1]

    def found(self) -> Found:
        resources = [
            Entry(keys.of_resource(Key.parse(key)), json.dumps(document).encode(), revision)
            for key, (revision, document) in self.held.items()
        ]
        head = json.dumps({"number": self.head[0], "id": "x"}).encode()
        return Found(
            (Entry(keys.HEAD, head, self.head[1]), *resources),
            tuple(
                Entry(keys.of_history(number), json.dumps(value).encode(), revision)
                for number, revision, value in self.history
            ),
            tuple(Entry(keys.of_audit(number), b"", revision) for number, revision in self.audit),
        )


def journal() -> Journal:
    """Three acknowledged writes, at revisions 13, 16 and 19; a refused one; one of unknown end."""
    book = Journal("t")
    for revision, removes in ((13, []), (16, []), (19, ["s-a", "s-b"])):
        write = book.next_write([] if removes else ["s-a", "s-b"], removes)
        write.fate, write.revision = Fate.ACKNOWLEDGED, revision
    book.next_write(["r-a", "r-b"]).fate = Fate.REFUSED
    book.next_write(["u-a", "u-b"])
    return book


def test_promises_that_were_kept() -> None:
    book = journal()
    assert mistakes(book, Store(*book.writes[:3]).found()) == []
    assert mistakes(book, Store(*book.writes[:3], book.writes[4]).found()) == []  # either way


def found_in(book: Journal, store: Store) -> str:
    return "\n".join(mistakes(book, store.found()))


def test_a_lost_write() -> None:
    book = journal()
    assert "write 2 was acknowledged at 19, and is lost" in found_in(book, Store(*book.writes[:2]))


def test_a_refused_write_that_was_made() -> None:
    book = journal()
    assert "write 3 was refused" in found_in(book, Store(*book.writes[:4]))


def test_a_write_made_twice() -> None:
    book = journal()
    made = (*book.writes[:3], book.writes[4], book.writes[4])
    assert "write 4 was made 2 times" in found_in(book, Store(*made))


def test_a_write_that_nobody_made() -> None:
    book = journal()
    for reason in ("t write 77", "who knows"):
        stranger = Write(9, reason, 9, ("s-a", "s-b"))
        assert "nobody asked for" in found_in(book, Store(*book.writes[:3], stranger))


def test_half_a_write() -> None:
    book = journal()
    half = Write(4, book.writes[4].reason, book.writes[4].mark, ("u-a",))
    assert "in part" in found_in(book, Store(*book.writes[:3], half))
    other = Write(5, book.writes[4].reason, 5, ("u-a", "u-b"))
    assert "or otherwise" in found_in(book, Store(*book.writes[:3], other))


@pytest.mark.parametrize("missing", [0, 1])
def test_history_with_a_gap(missing: int) -> None:
    book = journal()
    store = Store(*book.writes[:3])
    del store.history[missing], store.audit[missing]
    found = found_in(book, store)
    assert "is lost" in found
    assert missing == 0 or "history has gaps: 5 -> 7" in found


def test_history_without_audit() -> None:
    book = journal()
    store = Store(*book.writes[:3])
    store.audit[1] = (6, 17)
    assert "not written together" in found_in(book, store)


def test_a_head_that_is_not_the_last() -> None:
    book = journal()
    store = Store(*book.writes[:3])
    store.head = store.audit[1]
    assert "the head says 6, history ends with 7" in found_in(book, store)


def test_what_the_store_holds_is_not_what_was_written() -> None:
    book = journal()
    left = Store(*book.writes[:3])
    left.held["Tenant/s-a"] = (16, {"spec": {MARK: book.writes[1].mark}})
    assert "Tenant/s-a is" in found_in(book, left)
    book.writes[2].fate = Fate.AMBIGUOUS
    for revision, mark in ((16, 1), (17, book.writes[1].mark)):
        changed = Store(*book.writes[:2])
        changed.held["Tenant/s-b"] = (revision, {"spec": {MARK: mark}})
        assert "Tenant/s-b is" in found_in(book, changed)
    gone = Store(*book.writes[:2])
    del gone.held["Tenant/s-a"]
    assert "Tenant/s-a is None" in found_in(book, gone)


def test_a_request_that_failed_or_had_to_move() -> None:
    book = journal()
    store = Store(*book.writes[:3])
    book.down["tokyo"] = [100.0, 103.0]
    for at_s, took_s, well in ((99.0, 1.5, True), (102.9, 0.5, True), (104.0, 1.0, False)):
        book.requests = [Request(at_s, took_s, ("tokyo", "london"), "frankfurt", "")]
        assert (mistakes(book, store.found()) == []) is well
    book.requests = [Request(0.0, 1.0, ("london",), "", "HTTP 503: busy")]
    assert "failed after 1.00 s: HTTP 503" in found_in(book, store)
    book.requests = [Request(0.0, 9.0, ("london",), "frankfurt", "")]
    assert "took 9.00 s" in found_in(book, store)
