"""Paced overrides, as tables of timed steps; and that nothing makes one jump."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.directives.state import Drain, Outlook, State, Verdict
from control_plane.director.pacing import LONGEST_STEP_S, Pace, advance
from tests.topology.worlds import base_documents, document
from topology.resources import parse
from topology.snapshot import Snapshot

NOW_S = 1_700_000_000.0
WELL = {"singapore": 0.5, "frankfurt": 0.5, "dubai": 0.5}
CLASS = "standard:dubai|frankfurt|singapore"


def override(region: str = "singapore", revision: int = 7, **spec: Any) -> dict[str, Any]:
    given_ = {"region": region, "action": "drain", "reason": "upgrade", "over_s": 100.0} | spec
    return document("Override", region, **given_) | {"revision": revision}


def world(*documents: dict[str, Any]) -> Snapshot:
    held = {(d["kind"], d["name"]): d for d in [*base_documents(), *documents]}
    return Snapshot.build(9, [parse(raw, "test") for raw in held.values()])


def outlook(
    load: dict[str, float] | None = None,
    errors: dict[str, float] | None = None,
    first_ms: dict[str, float] | None = None,
    flows: dict[str, dict[str, float]] | None = None,
) -> Outlook:
    return Outlook(
        at_s=NOW_S,
        flows={CLASS: {"singapore": 100.0}} if flows is None else flows,
        utilisation=WELL | (load or {}),
        error_rate=errors or {},
        first_token_ms=first_ms or {},
    )


class Run:
    """A director that steps at the times it is told."""

    def __init__(self, *documents: dict[str, Any], state: State | None = None) -> None:
        self.snapshot = world(*documents)
        self.state = state or State()
        self.pace = Pace({})

    def at(self, offset_s: float, seen: Outlook | None = None) -> Drain:
        self.pace = advance(self.snapshot, self.state, seen or outlook(), NOW_S + offset_s)
        self.state = msgspec.structs.replace(self.state, drains=self.pace.drains)
        return self.pace.drains["singapore"]


def test_it_goes_at_the_asked_pace_and_stops_at_the_target() -> None:
    run = Run(override(percent=80.0, from_percent=20.0))
    percents = [run.at(float(second)).percent for second in range(103)]
    assert percents[0] == 20.0
    assert percents[1] == pytest.approx(20.6)
    assert percents[50] == pytest.approx(50.0)
    assert percents[100:] == [pytest.approx(80.0), 80.0, 80.0]
    assert not run.pace.finished


def test_the_shortest_time_there_is() -> None:
    run = Run(override(over_s=5e-324))
    assert [run.at(at_s).percent for at_s in (0.0, 0.0, 1.0)] == [0.0, 0.0, 100.0]


def test_a_restore_goes_to_nothing_and_is_finished_there() -> None:
    run = Run(override(percent=0.0, from_percent=50.0, over_s=10.0))
    percents = [run.at(float(second)).percent for second in range(10)]
    assert percents == pytest.approx([50.0 - 5.0 * second for second in range(10)])
    assert not run.pace.finished
    assert run.at(10.0).percent == 0.0
    assert run.pace.finished == {"singapore": 7}
    assert run.pace.drains["singapore"].percent == 0.0, "it holds until its override is gone"


def test_it_goes_on_where_the_store_was_wiped_and_everything_applied_again() -> None:
    """Revisions begin anew: it is the same override all the same."""
    run = Run(override(revision=951))
    stood = [run.at(float(second)).percent for second in range(20)][-1]
    run.snapshot = world(override(revision=22))
    assert run.at(20.0).percent == pytest.approx(stood + 1.0)
    assert run.state.drains["singapore"].override_revision == 22
    run.snapshot = world(override(revision=5, percent=50.0, from_percent=40.0))
    assert run.at(21.0).percent == 40.0, "that is another"


SUFFERING = [
    (outlook(load={"frankfurt": 0.95}), "frankfurt is at 95% of its capacity, above 90%"),
    (outlook(errors={"dubai": 0.05}), "5.0% of the requests to dubai fail, above 2.0%"),
    (outlook(first_ms={"frankfurt": 200.0}), "the first token from frankfurt takes 200 ms"),
    (Outlook(utilisation={"frankfurt": 0.1}), "nothing is known of the load of dubai"),
    (Outlook(), "nothing is known of the load of dubai; nothing is known of the load of frank"),
]


@pytest.mark.parametrize(("seen", "reason"), SUFFERING)
def test_it_waits_while_a_receiver_suffers_and_says_which_and_why(
    seen: Outlook, reason: str
) -> None:
    run = Run(override())
    calm = outlook(first_ms={"frankfurt": 100.0})
    run.at(0.0, calm)
    stood = run.at(1.0, calm).percent
    for second in range(2, 30):
        drain = run.at(float(second), seen)
        assert drain.percent == stood
        assert reason in drain.paused
    assert run.pace.notes[0].startswith("singapore stands at 1%: ")


def test_it_goes_on_only_after_all_have_been_well_for_a_while() -> None:
    run = Run(override())
    full = outlook(load={"frankfurt": 0.95})
    steps: list[tuple[float, Outlook | None, float, bool]] = [
        (0.0, None, 0.0, False),
        (1.0, None, 1.0, False),
        (2.0, full, 1.0, True),
        (3.0, None, 1.0, True),  # well again: 5 s begin
        (6.0, None, 1.0, True),
        (7.0, full, 1.0, True),  # not well: they begin anew
        (8.0, None, 1.0, True),
        (12.5, None, 1.0, True),
        (13.0, None, 1.0, False),  # the pause is over, and not made up for
        (14.0, None, 2.0, False),
        (15.0, None, 3.0, False),
    ]
    for at_s, seen, percent, waits in steps:
        drain = run.at(at_s, seen)
        assert (at_s, drain.percent, bool(drain.paused)) == (at_s, pytest.approx(percent), waits)


def test_a_slow_receiver_is_judged_against_its_latency_at_the_start() -> None:
    run = Run(override())
    assert not run.at(0.0, outlook(first_ms={"frankfurt": 1_000.0, "dubai": 20.0})).paused
    assert not run.at(1.0, outlook(first_ms={"frankfurt": 1_400.0, "dubai": 60.0})).paused
    told = run.at(2.0, outlook(first_ms={"frankfurt": 1_501.0})).paused
    assert told == (
        "the first token from frankfurt takes 1501 ms, above 1500 ms (1000 ms at the start)"
    )


def test_a_receiver_that_is_down_stops_it_and_one_that_is_failed_over_is_not_asked() -> None:
    down = State(verdicts={"frankfurt": Verdict(False, NOW_S, "3 of 4 edges say so")})
    run = Run(override(), state=down)
    assert run.at(0.0).paused == "frankfurt is down (3 of 4 edges say so)"
    gone = override("frankfurt", percent=100.0, over_s=0.0, action="failover")
    run = Run(override(), gone, state=down)
    run.at(0.0)
    assert run.at(1.0).percent == pytest.approx(1.0)


def test_only_regions_that_may_get_its_demand_are_asked() -> None:
    flows = {"vip:dubai|singapore": {"singapore": 5.0}, "standard:frankfurt": {"frankfurt": 9.0}}
    run = Run(override())
    assert not run.at(0.0, outlook(load={"frankfurt": 3.0}, flows=flows)).paused
    assert run.at(1.0, outlook(load={"dubai": 3.0}, flows=flows)).paused
    assert run.at(2.0, outlook(load={"frankfurt": 3.0}, flows={})).paused, "by the routes"


def test_a_restore_asks_the_region_that_requests_return_to() -> None:
    run = Run(override(percent=0.0, from_percent=100.0))
    run.at(0.0)
    assert not run.at(1.0, outlook(load={"frankfurt": 2.0})).paused
    assert "singapore is at 95%" in run.at(2.0, outlook(load={"singapore": 0.95})).paused


def test_what_has_arrived_waits_for_nobody() -> None:
    run = Run(override(from_percent=100.0))
    assert run.at(0.0, Outlook()).paused == ""


CLOCKS = [
    ([0, 1, 3_601, 3_602], [0.0, 1.0, 3.0, 4.0]),  # an hour forward
    ([0, 1, -3_599, -3_598], [0.0, 1.0, 1.0, 2.0]),  # an hour back
    ([0, 1, 6, 7], [0.0, 1.0, 3.0, 4.0]),  # five seconds without a director
    ([0, 0, 0, 1], [0.0, 0.0, 0.0, 1.0]),
]


@pytest.mark.parametrize(("times", "percents"), CLOCKS)
def test_a_clock_that_jumps_moves_nothing(times: list[float], percents: list[float]) -> None:
    run = Run(override())
    assert [run.at(float(at)).percent for at in times] == pytest.approx(percents)


def test_a_clock_that_goes_back_does_not_prolong_a_pause() -> None:
    run = Run(override())
    run.at(0.0, Outlook())
    run.at(1.0)
    run.at(-3_600.0)
    assert run.at(-3_594.0).paused == ""


def test_another_director_goes_on_from_the_state() -> None:
    first = Run(override())
    for second in range(11):
        first.at(float(second))
    second_ = Run(override(), state=first.state)
    assert second_.at(12.0).percent == pytest.approx(12.0)


def test_an_override_that_replaces_another_begins_where_it_says() -> None:
    run = Run(override())
    for second in range(31):
        run.at(float(second))
    run.snapshot = world(override(revision=8, percent=0.0, from_percent=30.0, over_s=10.0))
    assert run.at(31.0) == Drain("singapore", 30.0, 0.0, NOW_S + 31.0, override_revision=8)
    assert run.at(32.0).percent == pytest.approx(27.0)


@pytest.mark.parametrize(
    "left", [(), (override(expires_s=NOW_S + 5.0),), (override(over_s=0.0, revision=8),)]
)
def test_removed_expired_and_immediate_overrides_have_no_drain(left: tuple[Any, ...]) -> None:
    run = Run(override())
    run.at(4.0)
    run.snapshot = world(*left)
    assert advance(run.snapshot, run.state, outlook(), NOW_S + 5.0) == Pace({})


def test_regions_go_on_by_themselves() -> None:
    run = Run(override(), override("frankfurt", from_percent=40.0, percent=20.0))
    run.at(0.0)
    run.at(1.0, outlook(load={"dubai": 1.2}))
    assert run.state.drains["singapore"].paused
    assert run.state.drains["frankfurt"].percent == pytest.approx(39.8)


def test_nothing_changes_while_it_waits_or_rests() -> None:
    """The director writes its state whenever it differs: a pause must not cost a write a second."""
    run = Run(override(over_s=2.0))
    full = outlook(load={"frankfurt": 0.95})
    run.at(0.0)
    assert run.at(1.0, full) == run.at(2.0, full)
    run = Run(override(from_percent=100.0))
    assert run.at(0.0) == run.at(1.0)


seconds = st.one_of(st.floats(0.0, 3.0), st.floats(-7_200.0, 7_200.0))
figures = st.builds(
    outlook,
    load=st.dictionaries(st.sampled_from(sorted(WELL)), st.floats(0.0, 1.1)),
    errors=st.dictionaries(st.sampled_from(sorted(WELL)), st.floats(0.0, 0.03)),
    first_ms=st.dictionaries(st.sampled_from(sorted(WELL)), st.floats(1.0, 300.0)),
)


# A double that holds Unix seconds tells moments this far apart.
CLOCK_GRAIN_S = 1e-6


@given(
    st.floats(0.0, 100.0),
    st.floats(0.0, 100.0),
    st.floats(0.1, 10_000.0),
    st.lists(st.tuples(seconds, figures), max_size=30),
)
def test_whatever_happens_it_is_monotone_never_too_fast_and_never_past_the_target(
    begin: float, target: float, over_s: float, ticks: list[tuple[float, Outlook]]
) -> None:
    run = Run(override(from_percent=begin, percent=target, over_s=over_s))
    last, at_s = run.at(0.0).percent, 0.0
    assert last == begin
    for elapsed_s, seen in ticks:
        before_s, at_s = at_s, at_s + elapsed_s
        elapsed_s = (NOW_S + at_s) - (NOW_S + before_s)  # as the clock can tell it
        percent = run.at(at_s, seen).percent
        moved = abs(percent - last)
        rate = abs(target - begin) / over_s
        allowed = rate * (min(max(elapsed_s, 0.0), LONGEST_STEP_S) + CLOCK_GRAIN_S)
        assert moved <= allowed + 1e-6
        assert min(begin, target) <= percent <= max(begin, target)
        assert (percent - last) * (target - begin) >= 0.0
        last = percent
