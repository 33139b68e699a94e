"""Answers in an LMDB file: bounds, shares, order, and what becomes of it when things go wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_node.cache import record
from edge_node.cache.shelf import FILL, MIN_BYTES, Shelf, charge
from edge_node.errors import ShelfFault
from edge_node.front.replies import Answer
from topology.wire.chat import Usage

ROOM = 4 * MIN_BYTES


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    shelf = Shelf(tmp_path, ROOM)
    shelf.limit(ROOM, 0.5)
    yield shelf
    shelf.close()


def name(tenant: str, number: int) -> bytes:
    return f"{tenant}\0model\0".encode() + number.to_bytes(8, "big")


def test_what_was_put_is_there_and_there_again_later(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, ROOM)
    shelf.limit(ROOM, 0.5)
    assert shelf.put([(name("acme", 1), b"one"), (name("acme", 2), b"two")]) == 2
    assert shelf.get(name("acme", 1)) == b"one"
    assert shelf.get(name("acme", 3)) is None
    used = shelf.used_bytes
    shelf.close()
    again = Shelf(tmp_path, ROOM)
    assert (again.get(name("acme", 2)), again.used_bytes, len(again)) == (b"two", used, 2)
    again.close()
    assert (tmp_path / "data.mdb").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "lock.mdb").stat().st_mode & 0o777 == 0o600


def test_the_oldest_goes_first_and_the_file_stays_within_its_bound(
    shelf: Shelf, tmp_path: Path
) -> None:
    rng = Random(1)
    for number in range(0, 4000, 50):
        batch = [
            (name(rng.choice("abcd"), n), rng.randbytes(rng.choice((50, 900, 3000, 9000))))
            for n in range(number, number + 50)
        ]
        shelf.put(batch)
        assert shelf.used_bytes <= FILL * ROOM
    assert shelf.evicted > 1000
    assert (tmp_path / "data.mdb").stat().st_size <= ROOM
    kept = [n for n in range(4000) if any(shelf.get(name(t, n)) for t in "abcd")]
    assert kept == list(range(kept[0], 4000)), "those that are left are the youngest"


def test_a_tenant_above_its_share_pushes_out_only_its_own(shelf: Shelf) -> None:
    shelf.put([(name("quiet", n), bytes(1000)) for n in range(100)])
    for start in range(0, 6000, 40):
        shelf.put([(name("loud", n), bytes(1000)) for n in range(start, start + 40)])
    assert shelf.evicted > 1000
    assert all(shelf.get(name("quiet", n)) for n in range(100))
    assert shelf.held_by(b"loud") > FILL * ROOM / 2, "what nobody else wants, it may have"


def test_a_tenant_below_its_share_gets_room_from_the_one_above(shelf: Shelf) -> None:
    for start in range(0, 4000, 40):
        shelf.put([(name("loud", n), bytes(1000)) for n in range(start, start + 40)])
    for start in range(0, 800, 40):
        shelf.put([(name("quiet", n), bytes(1000)) for n in range(start, start + 40)])
    assert all(shelf.get(name("quiet", n)) for n in range(800))
    assert shelf.held_by(b"loud") >= FILL * ROOM / 2 - charge(name("loud", 1), bytes(1000))


def test_a_smaller_limit_is_reached_step_by_step(shelf: Shelf) -> None:
    for start in range(0, 1500, 50):
        shelf.put([(name("acme", n), bytes(1000)) for n in range(start, start + 50)])
    shelf.limit(MIN_BYTES, 0.5)
    while shelf.shrink():
        pass
    assert shelf.used_bytes <= FILL * MIN_BYTES
    assert shelf.get(name("acme", 1499)) is not None


def test_what_is_larger_than_its_place_is_not_kept(shelf: Shelf) -> None:
    assert shelf.put([(name("acme", 1), bytes(ROOM // 8)), (name("acme", 2), b"small")]) == 1
    assert shelf.get(name("acme", 1)) is None


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["a", "ab", "b"]),
        st.integers(0, 25),
        st.sampled_from([10, 2000, 20_000, 60_000]),
    ),
    max_size=80,
)


@given(STEPS)
@settings(max_examples=25, deadline=None)
def test_totals_are_those_of_what_is_there(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]]
) -> None:
    shelf = Shelf(tmp_path_factory.mktemp("shelf"), MIN_BYTES)
    try:
        shelf.limit(MIN_BYTES, 0.5)
        latest: dict[bytes, bytes] = {}
        for count, (tenant, number, size) in enumerate(steps):
            value = bytes([count % 256]) * size
            if shelf.put([(name(tenant, number), value)]):
                latest[name(tenant, number)] = value
        there = {n: v for n, v in latest.items() if shelf.get(n) is not None}
        assert all(shelf.get(n) == v for n, v in there.items())
        assert len(shelf) == len(there)
        for tenant in (b"a", b"ab", b"b"):
            mine = {n: v for n, v in there.items() if n.startswith(tenant + b"\0")}
            assert shelf.held_by(tenant) == sum(charge(n, v) for n, v in mine.items())
        if steps and charge(name("a", 0), bytes(60_000)) < FILL * MIN_BYTES / 8:
            assert shelf.get(name(*steps[-1][:2])) is not None, "what came last is there"
    finally:
        shelf.close()


def test_a_full_file_is_a_fault_that_making_room_mends(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, MIN_BYTES)
    shelf._limit = 100 * MIN_BYTES  # as if pages were never empty
    with pytest.raises(ShelfFault) as caught:
        for start in range(0, 4000, 20):
            shelf.put([(name("acme", n), bytes(1500)) for n in range(start, start + 20)])
    assert caught.value.kind == "full"
    shelf.make_room()
    assert shelf.put([(name("acme", 9999), bytes(1500))]) == 1
    shelf.close()


KILLED = """
import os, signal, sys
from pathlib import Path
from edge_node.cache.shelf import Shelf, _Writing
shelf = Shelf(Path(sys.argv[1]), int(sys.argv[2]))
shelf.limit(int(sys.argv[2]), 0.5)
shelf.put([(b"acme\\0model\\0whole", b"whole")])
with shelf._environment.begin(write=True) as transaction:
    writing = _Writing(shelf, transaction)
    for n in range(500):
        writing.put(b"acme\\0model\\0%d" % n, bytes(3000))
    writing.save()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_writer_that_is_killed_midway_leaves_what_was_whole(shelf: Shelf, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(ROOM)], timeout=30)
    assert done.returncode == -signal.SIGKILL
    assert shelf.get(b"acme\0model\0whole") == b"whole"
    assert shelf.get(b"acme\0model\0" + b"7") is None
    assert shelf.put([(name("acme", 1), b"goes on")]) == 1
    shelf.forget_readers()
    assert len(shelf) == 2


WRITES = """
import sys
from pathlib import Path
from edge_node.cache.shelf import Shelf
shelf = Shelf(Path(sys.argv[1]), int(sys.argv[2]))
shelf.limit(int(sys.argv[2]), 0.5)
who = sys.argv[3].encode()
for n in range(0, 1500, 10):
    shelf.put([(who + b"\\0m\\0%d" % i, who * 300) for i in range(n, n + 10)])
shelf.close()
"""


def test_two_processes_write_and_a_third_reads(shelf: Shelf, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITES, str(tmp_path), str(ROOM)]
    writers = [subprocess.Popen([*command, who]) for who in ("one", "two")]
    while any(writer.poll() is None for writer in writers):
        for who in (b"one", b"two"):
            kept = shelf.get(who + b"\0m\0" + b"1499")
            assert kept in (None, who * 300)
    assert [writer.returncode for writer in writers] == [0, 0]
    assert shelf.get(b"one\0m\0" + b"1499") == b"one" * 300
    assert shelf.used_bytes <= FILL * ROOM
    assert shelf.held_by(b"one") > 0 and shelf.held_by(b"two") > 0


def test_a_folder_that_is_a_file_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(os.urandom(100_000))
    with pytest.raises(ShelfFault) as caught:
        Shelf(tmp_path, ROOM)
    assert caught.value.kind == "damaged"


# What is kept, and what is believed


TEXT = st.text(max_size=30)
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
KEYS = st.tuples(
    NAMES, NAMES, st.binary(min_size=8, max_size=8), st.binary(min_size=16, max_size=16)
)
ANSWER = Answer("id", 1, "model", "text", "stop", Usage.of(1, 2))


@given(KEYS, KEYS, TEXT)
def test_what_is_kept_under_one_name_is_nothing_under_another(
    one: record.AnswerKey, other: record.AnswerKey, text: str
) -> None:
    answer = Answer("id", 1, one[1], text, "stop", Usage.of(3, 4))
    name = record.name_of(one)
    assert name is not None
    kept = record.encode(name, answer, 1000.0, 60.0)
    stored = record.decode(name, kept)
    assert stored is not None and record.answer_of(stored) == answer
    if one != other:
        foreign = record.name_of(other)
        assert foreign is not None and foreign != name
        assert record.decode(foreign, kept) is None


@given(st.data())
def test_no_damage_is_believed(data: st.DataObject) -> None:
    kept = bytearray(record.encode(b"t\0m\0k", ANSWER, 1000.0, 60.0))
    at = data.draw(st.integers(0, len(kept) - 1))
    kept[at] ^= data.draw(st.integers(1, 255))
    assert record.decode(b"t\0m\0k", bytes(kept)) is None
    assert record.decode(b"t\0m\0k", bytes(kept[:at])) is None


@pytest.mark.parametrize(
    ("wall_s", "late_s", "left_s"),
    [
        (1000.0, 0.0, 60.0),
        (1059.0, 0.0, 1.0),
        (1060.0, 0.0, None),
        (1061.0, 30.0, -1.0),
        (1090.0, 30.0, None),
        (997.0, 0.0, 60.0),  # set back a little: no longer good than it ever was
        (990.0, 0.0, None),  # from the future: not believed,
        (990.0, 1e9, None),  # whoever asks
        (1e12, 30.0, None),
    ],
)
def test_how_long_an_answer_is_good_when_clocks_jump(
    wall_s: float, late_s: float, left_s: float | None
) -> None:
    stored = record.decode(b"n", record.encode(b"n", ANSWER, 1000.0, 60.0))
    assert stored is not None
    assert record.left_s(stored, wall_s, late_s) == left_s


def test_names_too_long_for_the_file_are_not_kept() -> None:
    assert record.name_of(("t", "m" * 600, b"", b"")) is None
