"""What a failover cost is computed from what clients saw."""

from __future__ import annotations

from typing import Any

from lab.report import Outcome, failover, totals


def seen(city: str, region: str, begun_s: float, **fields: Any) -> Outcome:
    base: dict[str, Any] = {
        "city": city,
        "tenant": "acme",
        "dns_answer": ("127.10.1.1",),
        "edge": "london",
        "served_by": "region",
        "region": region,
        "path": "direct",
        "status": 200,
        "stream": False,
        "ttft_ms": 100.0,
        "total_ms": 200.0,
        "prompt": "p",
        "answer": "a",
        "begun_s": begun_s,
        "phase": "steady",
    }
    return Outcome(**(base | fields))


def test_a_failover_counts_what_was_in_flight_and_what_came_after() -> None:
    outcomes = [
        seen("London", "frankfurt", 1.0),
        seen("London", "frankfurt", 9.9, total_ms=500.0),  # in flight at 10.0
        seen("London", "dubai", 10.5, phase="drained", ttft_ms=300.0),
        seen("Tokyo", "singapore", 10.1, phase="drained"),  # never was Frankfurt's
        seen("Berlin", "frankfurt", 10.4, phase="drained"),  # slipped through
        seen("London", "frankfurt", 10.1, phase="draining"),  # not in effect yet
        seen("London", "", 11.0, phase="drained", error="HTTP 503", served_by=""),
        seen("London", "dubai", 20.0, phase="killed"),  # another story
    ]
    cost = failover("frankfurt", 10.0, 10.2, 20.0, outcomes)
    assert cost.requests_during == 6
    assert cost.in_effect_ms == 200.0
    assert cost.failed == 1
    assert cost.served_there_after == 1
    assert cost.first_served_elsewhere_ms == 800.0


def test_a_failover_that_nobody_noticed() -> None:
    cost = failover("dubai", 10.0, 10.0, 20.0, [seen("London", "frankfurt", 1.0)])
    assert (cost.requests_during, cost.failed, cost.first_served_elsewhere_ms) == (0, 0, None)


def test_totals() -> None:
    outcomes = [
        seen("London", "frankfurt", 1.0, stream=True),
        seen("London", "", 2.0, served_by="cache", ttft_ms=5.0),
        seen("Tokyo", "", 3.0, error="boom", served_by="", edge=""),
    ]
    summed = totals(outcomes, {"edge": 90.0})
    assert (summed.requests, summed.failed, summed.from_cache, summed.streamed) == (3, 1, 1, 1)
    assert summed.by_region == {"frankfurt": 1}
    assert summed.cities == 2
    assert summed.edges == 1
