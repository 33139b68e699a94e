"""Staged rollouts, as tables of timed steps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.changes.rollout_steps import LONGEST_STEP_S, advance
from control_plane.directives.observed import ClassLoad, EdgeReport, NodeState, Observed
from control_plane.rollout_record import RolloutRecord, place
from topology.policy import RolloutPolicy
from topology.snapshot import Snapshot

NOW_S = 1_700_000_000.0
REVISION = 50
NUMBER = 7
SNAPSHOT = Snapshot.build(REVISION, ())
POLICY = RolloutPolicy(
    canaries=("tokyo",),
    canary_percent=0.0,
    canary_hold_s=10.0,
    steps=(50.0, 100.0),
    step_hold_s=5.0,
)
# Of forty edges, some among the first half of rollout 7 and some not.
EDGES = [f"edge-{index}" for index in range(40)]
FIRST_HALF = [edge for edge in EDGES if place(f"edge/{edge}", NUMBER) < 50.0]
REST = [edge for edge in EDGES if edge not in FIRST_HALF]


def begun(policy: RolloutPolicy = POLICY, **fields: Any) -> RolloutRecord:
    base = RolloutRecord(
        number=NUMBER,
        author="operator/alice",
        reason="",
        started_s=NOW_S,
        status="canary",
        percent=policy.canary_percent,
        canaries=policy.canaries,
        stage_since_s=NOW_S,
        before={"Route/all": None},
        revision=REVISION,
        base_revision=REVISION - 1,
        policy=policy,
        counted_s=NOW_S,
    )
    return msgspec.structs.replace(base, **fields)


def node(name: str, acked: int = REVISION, **fields: Any) -> NodeState:
    return NodeState(
        **{"node": name, "connected": True, "since_s": NOW_S, "acked_revision": acked} | fields
    )


def seen(
    nodes: Iterable[NodeState] = (), loads: dict[str, tuple[float, float]] | None = None
) -> Observed:
    """`loads`: edge -> requests and errors per second."""
    edges = {
        f"edge/{edge}": EdgeReport(
            f"edge/{edge}", edge, NOW_S, {"standard:a": ClassLoad(requests, 0.0, errors)}
        )
        for edge, (requests, errors) in (loads or {}).items()
    }
    return Observed(NOW_S, edges=edges, nodes={n.node: n for n in nodes})


def all_have_it() -> list[NodeState]:
    return [node(f"edge/{edge}") for edge in ["tokyo", *EDGES]]


class Run:
    """A director that looks at the times it is told."""

    def __init__(self, record: RolloutRecord) -> None:
        self.record = record
        self.writes = 0

    def at(self, offset_s: float, observed: Observed) -> RolloutRecord:
        moved = advance(self.record, SNAPSHOT, observed, NOW_S + offset_s)
        if moved is not None:
            self.record = moved
            self.writes += 1
        return self.record

    def until(self, offset_s: int, observed: Observed, begin: int = 0) -> RolloutRecord:
        for second in range(begin, offset_s + 1):
            self.at(float(second), observed)
        return self.record


def test_canaries_then_half_then_all_each_for_its_time() -> None:
    run = Run(begun())
    stages = []
    for second in range(40):
        record = run.at(float(second), seen(all_have_it()))
        if not stages or stages[-1][1:] != (record.status, record.percent):
            stages.append((second, record.status, record.percent))
    assert stages == [
        (0, "canary", 0.0),
        (10, "rolling", 50.0),
        (15, "rolling", 100.0),
        (20, "done", 100.0),
    ]
    assert not run.record.under_way
    assert run.writes < 12, "counts are not written each second"


def test_who_has_it_at_each_stage() -> None:
    record = begun()
    assert record.has("edge/tokyo")
    assert not any(record.has(f"edge/{edge}") for edge in EDGES)
    half = begun(percent=50.0)
    assert {edge for edge in EDGES if half.has(f"edge/{edge}")} == set(FIRST_HALF)
    assert 10 < len(FIRST_HALF) < 30
    assert all(begun(percent=100.0).has(f"edge/{edge}") for edge in EDGES)
    assert all(begun(status="rolled-back").has(f"edge/{edge}") for edge in EDGES)
    assert {e for e in EDGES if place(f"edge/{e}", 8) < 50.0} != set(FIRST_HALF), "drawn anew"


LATE = [
    (node("edge/tokyo", acked=0), True),
    (node("edge/tokyo", acked=REVISION - 1), True),
    (node("edge/tokyo/1", acked=REVISION - 1), True),  # one of its workers
    (node("edge/tokyo", acked=REVISION, staged=True), True),  # what it took up is of before
    (node("edge/tokyo", acked=REVISION - 1, stale=True), True),
    (node("edge/tokyo", acked=REVISION - 1, connected=False), False),
    (node(f"edge/{REST[0]}", acked=REVISION - 1), False),  # it is not due
    (node("edge/tokyo", acked=REVISION + 3), False),
]


@pytest.mark.parametrize(("late", "holds_up"), LATE)
def test_a_connected_node_that_is_due_and_has_not_taken_it_up_holds_it_up(
    late: NodeState, holds_up: bool
) -> None:
    run = Run(begun())
    record = run.until(60, seen([late]))
    if holds_up:
        assert (record.status, record.percent) == ("canary", 0.0)
        assert record.why.startswith(f"waits for {late.node}")
        assert ("does not reach the store" in record.why) is late.stale
        record = run.at(61.0, seen([node(late.node)]))
        assert (record.status, record.percent, record.why) == ("rolling", 50.0, "")
    else:
        assert record.status in ("rolling", "done")


@pytest.mark.parametrize("status", ["canary", "paused"])
def test_a_node_that_refuses_takes_it_back_and_is_named(status: str) -> None:
    refusal = node("edge/tokyo", acked=REVISION - 1, nack_revision=REVISION, nack_reason="no\nsuch")
    record = Run(begun(status=status)).at(1.0, seen([refusal]))
    assert (record.status, record.why) == ("rolled-back", "edge/tokyo refuses it: no such")


@pytest.mark.parametrize(
    "other",
    [
        node("edge/tokyo", nack_revision=REVISION - 1, nack_reason="of before"),
        node(f"edge/{REST[0]}", nack_revision=REVISION, nack_reason="not due"),
        node("edge/tokyo", nack_revision=REVISION, nack_reason="of before", staged=True),
    ],
)
def test_refusals_of_something_else_do_not(other: NodeState) -> None:
    assert Run(begun()).until(9, seen([other])).status == "canary"


ERRORS = [
    # requests and errors per second at the canary and at another, requests_min, taken back
    ((10.0, 2.0), (10.0, 0.0), 20, True),
    ((10.0, 0.1), (10.0, 0.0), 20, False),  # 1% is no more than 2%
    ((10.0, 2.0), (10.0, 2.0), 20, False),  # it is the same everywhere
    ((10.0, 3.0), (10.0, 2.0), 20, True),
    ((0.5, 0.5), (10.0, 0.0), 20, False),  # 5 requests say nothing
    ((10.0, 2.0), (0.1, 0.0), 20, False),  # nothing to compare with
    ((10.0, 2.0), (10.0, 0.0), 1_000, False),
    ((2.5, 0.1), (10.0, 0.0), 20, False),  # one failure by chance
]


@pytest.mark.parametrize(("canary", "other", "requests_min", "taken_back"), ERRORS)
def test_errors_at_edges_that_have_it_against_those_at_others(
    canary: tuple[float, float], other: tuple[float, float], requests_min: int, taken_back: bool
) -> None:
    policy = msgspec.structs.replace(POLICY, requests_min=requests_min)
    observed = seen(all_have_it(), {"tokyo": canary, REST[0]: other})
    record = Run(begun(policy)).until(9, observed)
    assert (record.status == "rolled-back") is taken_back, record
    if taken_back:
        assert "requests fail at edges that have it" in record.why


def test_an_edge_that_is_about_to_take_it_up_counts_on_neither_side() -> None:
    nodes = [node("edge/tokyo", acked=REVISION - 1)]
    record = Run(begun()).until(9, seen(nodes, {"tokyo": (100.0, 100.0), REST[0]: (10.0, 0.0)}))
    assert (record.status, record.counts.requests_with) == ("canary", 0.0)


def test_when_nobody_is_without_it_the_rate_of_before_counts() -> None:
    run = Run(begun())
    calm = {"tokyo": (10.0, 0.0), REST[0]: (10.0, 0.0), FIRST_HALF[0]: (10.0, 0.0)}
    record = run.until(15, seen(all_have_it(), calm))
    assert record.percent == 100.0
    failing = dict.fromkeys(calm, (10.0, 5.0))
    record = run.until(19, seen(all_have_it(), failing), begin=16)
    assert record.status == "rolled-back"
    assert "0.0% at the others" in record.why


def test_a_paused_one_stays_and_is_not_forgotten() -> None:
    run = Run(begun(status="paused", percent=50.0, step=1))
    record = run.until(100, seen(all_have_it()))
    assert (record.status, record.percent) == ("paused", 50.0)


def test_what_is_over_is_left_alone() -> None:
    for status in ("done", "rolled-back", "aborted"):
        assert advance(begun(status=status), SNAPSHOT, seen(), NOW_S + 1_000.0) is None


CLOCKS = [
    ([0, 1, 3_601, 3_602], False),  # an hour forward: five seconds of it count
    ([0, 1, -3_600, -3_599], False),  # an hour back
    ([0, 3, 6, -3_600, -3_597, -3_595], True),  # which does not make it last an hour longer
    ([0, 60, 61], False),  # a minute without a director
    ([0, 60, 120], True),
]


@pytest.mark.parametrize(("times", "moved"), CLOCKS)
def test_clocks_that_jump_shorten_no_stage(times: list[float], moved: bool) -> None:
    run = Run(begun())
    for at_s in times:
        record = run.at(float(at_s), seen(all_have_it()))
    assert (record.status == "rolling") is moved


def test_without_steps_the_canaries_are_followed_by_all() -> None:
    run = Run(begun(msgspec.structs.replace(POLICY, steps=())))
    assert run.until(10, seen(all_have_it())).percent == 100.0
    run = Run(begun(msgspec.structs.replace(POLICY, canary_percent=60.0)))
    assert run.until(10, seen(all_have_it())).percent == 100.0, "50% are fewer than have it"


ticks = st.lists(
    st.tuples(
        st.floats(-100.0, 100.0),
        st.lists(st.tuples(st.sampled_from(["tokyo", *EDGES[:6]]), st.booleans()), max_size=5),
    ),
    max_size=60,
)


@given(ticks)
def test_it_only_widens_and_never_past_a_due_node_that_lacks_it(ticks: Any) -> None:
    run, at_s, moving_s = Run(begun()), 0.0, 0.0
    for elapsed_s, acks in ticks:
        at_s += elapsed_s
        before = run.record
        moving_s += min(max(elapsed_s, 0.0), LONGEST_STEP_S)
        nodes = [node(f"edge/{edge}", acked=REVISION if acked else 0) for edge, acked in acks]
        record = run.at(at_s, seen(nodes))
        assert record.percent >= before.percent
        if record.percent > before.percent or record.status == "done" != before.status:
            last = {f"edge/{edge}": acked for edge, acked in acks}
            assert all(acked for name, acked in last.items() if before.has(name))
            holds = [10.0, 5.0, 5.0][: record.step or 1]
            assert moving_s >= sum(holds) - 1e-3
            assert record.step <= before.step + 1
