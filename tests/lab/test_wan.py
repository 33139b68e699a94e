"""The WAN emulator's decisions: distance is what it says, loss is seeded, order is kept."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.errors import LabError
from lab.wan.delay_line import DelayLine
from lab.wan.figures import Figures, Flap, WanLink, WanSettings, checked
from lab.wan.flapping import Flapping
from lab.wan.held import Held
from lab.wan.impairment import HEADERS_BYTES, Impairment
from lab.wan.relay import MAX_UNDER_WAY, Direction
from lab.wan.timer import LoopTimer
from runtime import settings
from runtime.clock import SystemClock


def link(**figures: Any) -> WanLink:
    base: dict[str, Any] = {"name": "l", "listen": "127.0.0.1:1", "target": "127.0.0.1:2"}
    return WanLink(**(base | figures))


@given(
    st.floats(0, 400),
    st.floats(0, 100),
    st.floats(0, 1e9),
    st.lists(st.floats(0, 0.05), min_size=1, max_size=50),
    st.integers(0, 1000),
)
def test_packets_stay_in_order_and_none_is_early(
    latency_ms: float, jitter_ms: float, bandwidth: float, gaps: list[float], seed: int
) -> None:
    figures = Figures(latency_ms=latency_ms, jitter_ms=jitter_ms, bandwidth_bit_per_s=bandwidth)
    impairment = Impairment(figures, str(seed))
    now, last = 100.0, 0.0
    for gap in gaps:
        now += gap
        for due in impairment.arrivals(now, 1000):
            assert due >= last
            assert due >= now + latency_ms / 1000
            last = due


def fates(figures: Figures, seed: str, count: int = 2000) -> list[int]:
    impairment = Impairment(figures, seed)
    return [len(impairment.arrivals(float(index), 100)) for index in range(count)]


def test_fate_is_seeded() -> None:
    figures = Figures(loss=0.3, duplicate=0.1)
    assert fates(figures, "1") == fates(figures, "1")
    assert fates(figures, "1") != fates(figures, "2")
    assert 0.25 < fates(figures, "1").count(0) / 2000 < 0.35
    assert 0.04 < fates(figures, "1").count(2) / 2000 < 0.1


def test_the_nth_packets_fate_is_the_same_whatever_was_set_before_it() -> None:
    plain, busy = Impairment(Figures(), "1"), Impairment(Figures(jitter_ms=9, cut=True), "1")
    for index in range(500):
        plain.arrivals(float(index), 100)
        busy.arrivals(float(index), 100)
    for impairment in (plain, busy):
        impairment.use(Figures(loss=0.5), 500.0)
    later = [[len(i.arrivals(500.0, 100)) for _ in range(200)] for i in (plain, busy)]
    assert later[0] == later[1]


def test_jitter_spreads_over_what_it_says() -> None:
    impairment = Impairment(Figures(latency_ms=10, jitter_ms=20), "1")
    late = [impairment.arrivals(float(n), 100)[0] - n for n in range(1, 1000)]
    assert 0.01 <= min(late) < 0.011 and 0.029 < max(late) <= 0.03


def test_bandwidth_spaces_packets_and_drops_what_does_not_fit() -> None:
    # 1000 bytes on the wire take 8 ms at 1 Mbit/s; the queue has room for five of them.
    figures = Figures(latency_ms=10, bandwidth_bit_per_s=1e6, queue_ms=40)
    impairment = Impairment(figures, "1")
    due = [impairment.arrivals(100.0, 1000 - HEADERS_BYTES) for _ in range(8)]
    times = [round((arrival[0] - 100.0) * 1000) for arrival in due if arrival]
    assert times == [18, 26, 34, 42, 50]
    assert impairment.dropped.overflowed == 3
    assert impairment.arrivals(100.008, 1000 - HEADERS_BYTES)  # one left, and one has room


@given(
    st.floats(10_000, 1e8),
    st.floats(1, 500),
    st.lists(st.tuples(st.floats(0, 0.02), st.integers(1, 1472)), min_size=1, max_size=200),
)
def test_no_stretch_of_time_carries_more_than_the_bandwidth_and_no_packet_waits_longer_than_said(
    bandwidth: float, queue_ms: float, packets: list[tuple[float, int]]
) -> None:
    figures = Figures(latency_ms=20, bandwidth_bit_per_s=bandwidth, queue_ms=queue_ms)
    impairment = Impairment(figures, "1")
    now, last = 100.0, 0.0
    for gap, size in packets:
        now += gap
        for due in impairment.arrivals(now, size):
            wire_s = (size + HEADERS_BYTES) * 8 / bandwidth
            assert due - last >= wire_s - 1e-6  # so any stretch between two arrivals is in bounds
            assert due - now <= 0.02 + max(queue_ms / 1000, wire_s) + 1e-6
            last = due


def test_a_queue_in_bytes() -> None:
    figures = Figures(bandwidth_bit_per_s=1e6, queue_bytes=2000)
    impairment = Impairment(figures, "1")
    taken = [bool(impairment.arrivals(1.0, 1000 - HEADERS_BYTES)) for _ in range(4)]
    assert taken == [True, True, False, False]


def test_an_empty_queue_takes_a_packet_that_is_larger_than_it() -> None:
    impairment = Impairment(Figures(bandwidth_bit_per_s=10_000, queue_ms=1), "1")
    assert impairment.arrivals(1.0, 1350) and not impairment.arrivals(1.0, 1350)


def test_what_waits_holds_up_nobody_once_the_bandwidth_is_back() -> None:
    impairment = Impairment(Figures(bandwidth_bit_per_s=10_000, queue_ms=5000), "1")
    assert impairment.arrivals(1.0, 1250)[0] > 2.0
    impairment.use(Figures(latency_ms=10), 1.5)
    assert impairment.arrivals(1.5, 1250) == (1.51,)


def test_a_shorter_way_is_shorter_at_once() -> None:
    impairment = Impairment(Figures(latency_ms=5000), "1")
    assert impairment.arrivals(1.0, 100) == (6.0,)
    impairment.use(Figures(latency_ms=10), 1.5)
    assert impairment.arrivals(1.5, 100) == (1.51,)


def test_reordered_packets_are_overtaken() -> None:
    impairment = Impairment(Figures(latency_ms=10, reorder=0.2), "1")
    due = [impairment.arrivals(100 + n / 1000, 100)[0] for n in range(1000)]
    overtaken = sum(a > b for a, b in pairwise(due))
    assert impairment.reordered > 100 and overtaken > 50
    assert max(d - 100 - n / 1000 for n, d in enumerate(due)) <= 0.0201


def test_flapping_in_turn() -> None:
    flapping = Flapping(Flap(2000, 500), 10.0, Random(1))
    seen = {t: flapping.up(t) for t in (10.0, 11.9, 12.1, 12.4, 12.6, 14.4, 14.6, 15.1)}
    assert [t for t, up in seen.items() if not up] == [12.1, 12.4, 14.6]


def test_random_flapping_has_the_means_it_says_and_is_seeded() -> None:
    def ups(seed: int) -> list[bool]:
        flapping = Flapping(Flap(300, 100, random=True), 0.0, Random(seed))
        return [flapping.up(n / 100) for n in range(20_000)]

    assert ups(1) == ups(1) != ups(2)
    assert 0.65 < sum(ups(1)) / 20_000 < 0.85


def test_directions_that_share_a_seed_flap_together() -> None:
    figures = Figures(flap=Flap(300, 100, random=True))
    ways = [Impairment(figures, seed, "together") for seed in ("out", "back")]
    seen = [[way.up(n / 50) for n in range(1000)] for way in ways]
    assert seen[0] == seen[1] and not all(seen[0])


def test_what_is_set_for_a_while_ends_and_what_lasts_comes_back() -> None:
    held = Held(Figures(latency_ms=10))
    held.set({"loss": 0.1})
    held.set({"loss": 0.5, "cut": True}, until=20.0)
    assert (held.at(19).loss, held.at(19).cut) == (0.5, True)
    assert held.left_s(15) == {"loss": 5.0, "cut": 5.0}
    held.set({"cut": False})  # for good: nothing brings the cut back
    assert (held.at(19).loss, held.at(19).cut) == (0.5, False)
    assert held.at(20) == Figures(latency_ms=10, loss=0.1)
    held.reset()
    assert held.at(21) == Figures(latency_ms=10)


@pytest.mark.parametrize(
    ("figures", "says"),
    [
        ({"loss": 1.5}, "loss"),
        ({"loss": -0.1}, "loss"),
        ({"latency_ms": float("nan")}, "latency_ms"),
        ({"latency_ms": "far"}, "latency_ms"),
        ({"lost": 0.1}, "no figure 'lost'"),
        ({"flap": {"up_ms": 0, "down_ms": 100}}, "up_ms"),
        ({"flap": Flap(1, 1)}, "up_ms"),
        ({"rtt_ms": 10, "latency_ms": 10}, "both given"),
        ({"bandwidth_bit_per_s": float("inf")}, "bandwidth"),
    ],
)
def test_figures_that_cannot_be(figures: dict[str, Any], says: str) -> None:
    with pytest.raises(LabError, match=says):
        checked(figures)


@pytest.mark.parametrize("same", ["name", "listen"])
def test_links_that_collide(same: str, tmp_path: Any) -> None:
    one = {"name": "a", "listen": "127.0.0.1:1", "target": "127.0.0.1:9"}
    two = {"name": "b", "listen": "127.0.0.1:2", "target": "127.0.0.1:9", same: one[same]}
    file = tmp_path / "wan.yaml"
    file.write_text(repr({"links": [one, two]}))
    with pytest.raises(Exception, match=f"two links have the {same}"):
        settings.load(WanSettings, file)


def test_asymmetry_in_settings() -> None:
    made = link(rtt_ms=80, out=Figures(latency_ms=70, loss=0.1))
    assert made.figures("out") == Figures(latency_ms=70, loss=0.1)
    assert made.figures("back") == Figures(latency_ms=40)


class Sink:
    def __init__(self) -> None:
        self.got: list[list[bytes]] = []

    def arrive(self, datagrams: list[bytes]) -> None:
        self.got.append(list(datagrams))


async def test_what_is_under_way_is_bounded() -> None:
    line = DelayLine(asyncio.get_running_loop())
    direction = Direction(Figures(latency_ms=60_000), line, "1")
    direction.carry(0.0, [b"x"] * (MAX_UNDER_WAY + 10), Sink())  # type: ignore[arg-type]
    counters = direction.counters
    assert (counters.overflowed, counters.under_way) == (10, MAX_UNDER_WAY)
    line.close()


@pytest.mark.parametrize("timer", [None, LoopTimer])
async def test_the_line_keeps_times_and_puts_together_what_leaves_together(timer: Any) -> None:
    loop, clock = asyncio.get_running_loop(), SystemClock()
    line = DelayLine(loop, clock, **({"timer": timer} if timer else {}))
    one, other = Sink(), Sink()
    begun = clock.now()
    line.add(begun + 0.05, one, [b"2"])
    line.add(begun + 0.02, one, [b"1"])
    line.add(begun + 0.05, one, [b"3"])
    line.add(begun + 0.05, other, [b"4"])
    while not other.got:
        await asyncio.sleep(0.001)
    assert clock.now() - begun >= 0.0495
    assert one.got == [[b"1"], [b"2", b"3"]] and other.got == [[b"4"]]
    line.close()
