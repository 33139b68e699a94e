"""How fast nodes are taken in."""

from __future__ import annotations

from control_plane.admission import Admission


def test_a_burst_then_a_steady_rate_then_turned_away() -> None:
    admission = Admission(rate_per_s=10.0, burst=3, longest_wait_s=0.5)
    waits = [admission.reserve(100.0) for _ in range(10)]
    assert waits[:3] == [0.0, 0.0, 0.0]
    assert [round(wait, 3) for wait in waits[3:8]] == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert waits[8:] == [None, None]
    # Turning somebody away takes no place: the queue empties at its rate.
    assert round(admission.reserve(100.11), 3) == 0.49
    assert admission.reserve(200.0) == 0.0


def test_time_that_stands_still_gives_nothing() -> None:
    admission = Admission(rate_per_s=1.0, burst=1, longest_wait_s=10.0)
    assert [admission.reserve(5.0) for _ in range(4)] == [0.0, 1.0, 2.0, 3.0]
