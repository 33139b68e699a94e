"""The report's figures, from rows that are made up."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from lab.storm import figures, plots, rows
from lab.storm.counters import Series, arrivals, finished, parse
from lab.storm.cpu import Spent
from lab.storm.event import Event, Phase, Population
from lab.storm.report import Report, Run, bounds, met, slowest
from lab.storm.rows import Records, Row
from lab.storm.run import Plan, capacity_left, summary
from lab.storm.stage import Engine, answer_s, nominal_rps, slots
from lab.storm.sweep import steps, sweep_phases
from topology.cursor import Tier

PHASES = (
    Phase("baseline", 0.0, 10.0, 10.0),
    Phase("peak", 10.0, 20.0, 100.0),
    Phase("tail", 20.0, 50.0, 10.0),
)


def row(
    due_s: float,
    took_s: float = 1.0,
    ok: bool = True,
    tier: Tier = "vip",
    served_by: str = "region",
    quality: str = "full",
    sends: int = 1,
    timeouts: int = 0,
    upstream: bool = True,
    phase: str = "",
    answer_id: str = "",
    cached: str = "",
) -> Row:
    phase = phase or next(p.name for p in PHASES if p.begins_s <= due_s < p.ends_s)
    return Row(
        number=int(due_s * 1000),
        phase=phase,
        due_s=due_s,
        city="tokyo",
        tier=tier,
        tenant=f"{tier}-1",
        deterministic=False,
        streamed=True,
        sends=tuple(due_s + i for i in range(sends)),
        status=200 if ok else 503,
        error="" if ok else "overloaded",
        served_by=served_by,
        quality=quality,
        region="singapore",
        first_s=due_s + took_s / 2 if ok else -1.0,
        done_s=due_s + took_s,
        ok=ok,
        timeouts=timeouts,
        refusals=0 if ok else 1,
        upstream=upstream,
        answer_id=answer_id,
        cached=cached,
    )


def evenly(from_s: float, to_s: float, count: int, **more: object) -> list[Row]:
    step = (to_s - from_s) / count
    return [row(from_s + i * step, **more) for i in range(count)]  # type: ignore[arg-type]


def test_goodput_is_what_regions_answered_in_time() -> None:
    some = evenly(10.0, 20.0, 100)
    some += evenly(10.0, 20.0, 50, served_by="cache", quality="cached")
    some += evenly(10.0, 20.0, 30, ok=False)
    some += evenly(10.0, 20.0, 20, quality="stale")
    assert figures.goodput_rps(some, 12.0, 18.0) == pytest.approx(10.0, rel=0.05)
    assert figures.answers_rps(some, 12.0, 18.0) == pytest.approx(17.0, rel=0.05)
    assert figures.offered_rps(some, 10.0, 20.0) == pytest.approx(20.0)


def test_what_clients_share_was_made_once() -> None:
    some = evenly(10.0, 20.0, 100) + evenly(10.0, 20.0, 100, answer_id="the hot one")
    some += evenly(10.0, 20.0, 50, cached="regional")
    assert figures.goodput_rps(some, 10.0, 25.0) == pytest.approx(200 / 15)
    assert figures.distinct_rps(some, 10.0, 25.0) == pytest.approx(101 / 15)
    assert figures.sent_upstream(some) == 100 + 1 + 50


def test_repeats_are_sent_but_not_asked() -> None:
    some = evenly(10.0, 14.0, 40, sends=4, ok=False)
    assert figures.offered_rps(some, 10.0, 18.0) == pytest.approx(5.0)
    assert figures.tries_rps(some, 10.0, 18.0) == pytest.approx(20.0)


def test_a_tier_is_told_by_whom_it_was_answered() -> None:
    some = evenly(0.0, 10.0, 100, took_s=1.0) + evenly(10.0, 20.0, 99, took_s=1.5)
    some += [row(15.0, took_s=9.0, ok=False, timeouts=3, sends=4)]
    some += evenly(10.0, 20.0, 50, tier="batch", ok=False)
    vip = figures.tier_figures(some, "vip", PHASES)
    assert (vip.requests, vip.answered, vip.success) == (100, 99, 0.99)
    assert (vip.p99_ms, vip.p99_unloaded_ms) == (1500.0, 1000.0)
    assert vip.first_token_p99_ms == 750.0
    assert (vip.unloaded_requests, vip.timeouts, vip.tries) == (80, 3, 103)
    assert figures.tier_figures(some, "batch", PHASES).success == 0.0
    assert figures.tier_figures(some, "standard", PHASES).p99_ms == -1.0


def test_what_the_event_may_have_delayed_is_not_unloaded() -> None:
    some = evenly(0.0, 8.0, 80) + evenly(8.0, 10.0, 20, took_s=6.0)
    assert figures.tier_figures(some, "vip", PHASES).p99_unloaded_ms == 1000.0


def tail(ill_until_s: float, **ill: object) -> list[Row]:
    return evenly(20.0, ill_until_s, 40, **ill) + evenly(ill_until_s, 50.0, 200)


@pytest.mark.parametrize(
    ("some", "found"),
    [
        (tail(24.0), 0.0),
        (tail(24.0, ok=False), 4.0),
        (tail(23.2, took_s=4.0), 3.5),  # to the end of its half second
        (evenly(20.0, 50.0, 300, ok=False), None),
        ([*tail(22.0), row(40.0, ok=False)], 20.5),  # back, and not for good
        ([*evenly(20.0, 50.0, 6_000), row(40.0, ok=False)], 0.0),  # one in a hundred is borne
    ],
)
def test_recovery_is_when_it_is_well_and_stays_so(some: list[Row], found: float | None) -> None:
    assert figures.recovery_s(some, 1.0, PHASES) == found


def test_the_slowest_recovery_counts() -> None:
    assert slowest([0.5, 2.0, 1.0]) == 2.0
    assert slowest([0.5, None]) is None


def test_what_was_sent_upstream() -> None:
    some = [
        row(11.0),  # answered by a region
        row(11.0, served_by="cache", quality="cached"),
        row(11.0, ok=False, upstream=False),  # refused by the edge
        row(11.0, ok=False, upstream=True),  # refused by the region
        row(11.0, ok=False, upstream=False, timeouts=1),  # perhaps
    ]
    assert figures.sent_upstream(some) == 3


def test_seconds_hold_everything_once() -> None:
    some = evenly(0.0, 50.0, 500, sends=2) + evenly(10.0, 20.0, 100, ok=False, tier="batch")
    length = 52
    counter = [float(10 * second) for second in range(length + 1)]
    found = figures.seconds(some, length, counter, counter, [0.0] * (length + 1))
    assert len(found) == length
    assert sum(sum(second.due) for second in found) == 600
    assert sum(second.tries for second in found) == 1_100
    assert sum(second.goodput for second in found) == 500
    assert sum(sum(second.failed) for second in found) == 100
    assert sum(second.qualities.get("full", 0) for second in found) == 500
    assert {second.reached_cores for second in found} == {10.0}


METRICS = """# HELP tradewind_core_accepted_total Requests taken on.
tradewind_core_accepted_total %d
tradewind_core_refused_total{cause="full"} %d
tradewind_core_refused_total{cause="forecast"} 5
tradewind_core_refused_total{cause="given_up"} 7
tradewind_core_finished_total{reason="stop"} 20
tradewind_core_finished_total{reason="length"} 2
tradewind_core_answers_hits_total %d
tradewind_edge_first_token_seconds_bucket{le="0.1"} 3
"""


def series() -> Series:
    found = Series({"core-a": ("127.0.0.1", 1), "edge-b": ("127.0.0.1", 2)})
    found.readings["core-a"] = [parse(METRICS % (n, n, 0), float(n)) for n in (0, 10, 30)]
    return found


def test_counters_are_read_between_readings() -> None:
    reading = parse(METRICS % (30, 3, 4), 1.0)
    assert arrivals(reading) == 30 + 3 + 5 + 4  # what was given up had been taken on
    assert finished(reading) == 22
    assert reading.by("tradewind_core_refused_total", "cause")["full"] == 3
    assert series().grown("core", arrivals, 5.0, 20.0) == pytest.approx(30.0)
    assert series().over_time("core", arrivals, [0.0, 20.0, 99.0]) == [5.0, 45.0, 65.0]
    assert series().grown("edge", arrivals, 0.0, 99.0) == 0.0


def a_run(**more: object) -> Run:
    plan = Plan(
        name="protected",
        phases=PHASES,
        cities=Event().cities,
        population=Population(),
        seed=1,
        capacity_rps=20.0,
        urls={},
    )
    some = evenly(0.0, 10.0, 100) + evenly(10.0, 20.0, 200, took_s=1.5) + evenly(20.0, 50.0, 300)
    found = Records(
        began_s=0.0,
        rows=tuple(some),
        lag_p99_ms=1.0,
        lag_max_ms=2.0,
        cpu_s=1.0,
        connections_max=10,
        wrong=0,
    )
    run = summary(plan, found, series(), Spent(0.5, 2, {}))
    return msgspec.structs.replace(run, **more)


def test_a_run_that_is_what_it_must_be() -> None:
    run = a_run()
    assert run.goodput_ratio_at_peak == pytest.approx(1.0, abs=0.02)
    assert run.vip_success == 1.0
    assert (run.vip_p99_ms, run.vip_p99_unloaded_ms) == (1500.0, 1000.0)
    assert run.recovery_s == 0.0
    assert run.sent_upstream == 500
    assert met(run)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"vip_success": 0.999}, "VIP requests answered"),
        ({"vip_p99_ms": 2_001.0}, "VIP p99, against unloaded"),
        ({"vip_p99_ms": -1.0}, "VIP p99, against unloaded"),
        ({"goodput_ratio_at_peak": 0.94}, "goodput at the peak, of capacity"),
        ({"amplification": 1.11}, "requests to cores for each request"),
        ({"recovery_s": 2.5}, "recovery after the peak"),
        ({"recovery_s": None}, "recovery after the peak"),
        ({"wrong_answers": 1}, "wrong answers"),
    ],
)
def test_each_bound_can_be_missed(change: dict[str, object], what: str) -> None:
    run = a_run(**change)
    assert [bound.what for bound in bounds(run) if not bound.met] == [what]
    assert not met(run)


def test_a_region_that_is_killed_takes_its_capacity_with_it() -> None:
    plan = Plan(
        name="protected",
        phases=PHASES,
        cities=(),
        population=Population(),
        seed=1,
        capacity_rps=30.0,
        urls={},
        kill="core-dubai",
    )
    assert capacity_left(plan, 3) == pytest.approx(0.3 * 30 + 0.7 * 20)
    assert capacity_left(msgspec.structs.replace(plan, kill="etcd"), 3) == 30.0


def test_capacity_goes_with_the_scale() -> None:
    engine = Engine()
    for scale in (0.1, 0.2, 0.4):
        event = Event(scale=scale)
        assert nominal_rps(engine, slots(event)) / event.normal_rps == pytest.approx(2.0, rel=0.15)
    # Little's law: as many answers are under way as there are slots.
    assert answer_s(engine, 16) * nominal_rps(engine, 16) == pytest.approx(3 * 16)


def test_a_sweep_holds_goodput_against_what_can_be_had() -> None:
    event = Event(scale=0.3)  # 40 a second
    phases = sweep_phases(event, (0.5, 4.0))
    assert [phase.rps for phase in phases] == [20.0, 160.0]
    assert phases[1].begins_s > phases[0].ends_s
    some = [
        msgspec.structs.replace(one, phase=phase.name)
        for phase, rps in zip(phases, (20, 60), strict=True)
        for one in evenly(phase.begins_s, phase.ends_s, round(7 * rps), took_s=0.1, phase="x")
    ]
    low, high = steps(some, phases, 60.0, event)
    assert low.goodput_ratio == pytest.approx(1.0, abs=0.03)
    assert high.goodput_rps == pytest.approx(60.0, abs=2)
    assert (low.times, high.times) == (0.5, 4.0)


def test_rows_survive_the_file(tmp_path: Path) -> None:
    found = Records(
        began_s=1.0,
        rows=(row(1.0), row(2.0, ok=False)),
        lag_p99_ms=0.1,
        lag_max_ms=0.2,
        cpu_s=0.3,
        connections_max=4,
        wrong=0,
    )
    rows.write(tmp_path / "rows", found)
    assert rows.read(tmp_path / "rows") == found


def test_a_report_can_be_read_again_and_drawn(tmp_path: Path) -> None:
    event = Event()
    run = a_run()
    report = Report(
        engine="sim",
        seed=1,
        cores=3,
        slots_each=16,
        nominal_rps=52.6,
        simulated=Engine(),
        event=event,
        population=Population(),
        phases=event.phases,
        runs={"protected": run, "<unprotected>": a_run(name="<unprotected>")},
        cpus=2,
        duration_s=1.0,
    )
    assert msgspec.json.decode(msgspec.json.encode(report), type=Report) == report
    written = plots.draw(report, tmp_path / "storm.json")
    assert [path.name for path in written] == ["storm.png", "storm.html"]
    assert written[0].read_bytes().startswith(b"\x89PNG")
    page = written[1].read_text()
    assert "<unprotected>" not in page
    assert "data:image/png;base64," in page
    assert page.count("http") == 0  # it needs nothing but itself
