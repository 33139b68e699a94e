"""What the failover benchmark works out of the bytes that clients saw."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.failover_figures import (
    Told,
    gap_by_position,
    gap_by_silence,
    is_wrong,
    spread,
    told,
)


def event(**choice: Any) -> bytes:
    text = {"choices": [{"index": 0, "delta": {}, "finish_reason": None} | choice]}
    return b"data: " + json.dumps(text).encode() + b"\n\n"


def content(text: str) -> bytes:
    return event(delta={"content": text})


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


ENDING = event(finish_reason="stop") + b'data: {"choices":[],"usage":{"total_tokens":3}}\n\n'


def test_a_stream_is_read_with_the_time_of_each_piece() -> None:
    data = chunk(content("día")), chunk(content(" x") + ENDING), chunk(b"data: [DONE]\n\n")
    found = told([(1.0, data[0]), (1.5, data[1]), (2.0, data[2] + chunk(b""))], chunked=True)
    assert found.text == "día x"
    assert found.pieces == [(1.0, 4), (1.5, 6)]
    assert (found.finish_reason, found.usage) == ("stop", {"total_tokens": 3})
    assert found.whole


def test_events_and_chunks_may_be_cut_anywhere() -> None:
    data = chunk(content("ab") + ENDING) + chunk(b"data: [DONE]\n\n") + chunk(b"")
    reads = [(float(index), data[index : index + 1]) for index in range(len(data))]
    found = told(reads, chunked=True)
    assert found.whole
    assert found.text == "ab"


def test_a_stream_that_was_cut_off_or_broken_is_not_whole() -> None:
    assert not told([(1.0, content("ab"))], chunked=False).whole
    broken = told([(1.0, content("ab") + b'data: {"error":{"message":"gone"}}\n\n')], chunked=False)
    assert broken.error == "gone"
    assert not broken.whole


def test_the_gap_ends_with_the_longest_silence() -> None:
    """What was under way when the fault struck still comes, and is not what ends the gap."""
    pieces = [(0.96, 1), (0.98, 2), (1.01, 3), (1.03, 4), (1.40, 5), (1.42, 6)]
    gap = gap_by_silence(pieces, fault=1.0, until=2.0)
    assert gap is not None
    assert gap.gap_ms == pytest.approx(400)
    assert gap.silence_ms == pytest.approx(370)


def test_a_silence_that_began_before_the_fault_counts_from_the_fault() -> None:
    gap = gap_by_silence([(0.2, 1), (1.3, 2), (1.32, 3)], fault=1.0, until=2.0)
    assert gap is not None
    assert gap.gap_ms == pytest.approx(300)
    assert gap.silence_ms <= 331


def test_a_stream_that_never_went_on_has_no_gap() -> None:
    assert gap_by_silence([(0.2, 1), (0.9, 2)], fault=1.0, until=2.0) is None
    assert gap_by_silence([(0.9, 2), (5.0, 3)], fault=1.0, until=2.0) is None


def test_what_another_way_delivered_is_told_by_the_position_that_it_went_on_from() -> None:
    pieces = [(0.9, 3), (1.2, 6), (1.7, 9), (1.72, 12)]
    assert gap_by_position(pieces, fault=1.0, bytes_before=6) == pytest.approx(700)
    assert gap_by_position(pieces, fault=1.0, bytes_before=5) == pytest.approx(200)
    assert gap_by_position(pieces, fault=1.0, bytes_before=12) is None


@pytest.mark.parametrize("part", ["text", "finish_reason", "usage"])
def test_an_answer_is_wrong_when_any_part_differs(part: str) -> None:
    right = {"text": "a", "finish_reason": "stop", "usage": {"total_tokens": 3}}
    assert not is_wrong(Told(**right), Told(**right))  # type: ignore[arg-type]
    assert is_wrong(Told(**right | {part: None}), Told(**right))  # type: ignore[arg-type]


def test_a_spread_of_nothing_is_nothing() -> None:
    assert spread([]) == {"p50": None, "p90": None, "max": None}
    assert spread([1.0, 9.0, 2.0]) == {"p50": 2.0, "p90": 9.0, "max": 9.0}
