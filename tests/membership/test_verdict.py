"""The verdict on regions: tables of timed steps, properties against a naive oracle, bad clocks."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.directives.state import Verdict
from control_plane.membership.verdict import advance, count, hold_down_s, penalty_at
from topology.policy import HealthPolicy

POLICY = HealthPolicy()
T0 = 1_700_000_000.0
EDGES = ("tokyo", "london", "lima", "accra")
R = "singapore"

Seen = dict[str, dict[str, bool]]


def seen(reach: str) -> Seen:
    """One letter an edge: `y` reaches the region, `n` does not, `.` says nothing."""
    said = zip(EDGES, reach, strict=False)
    return {f"edge/{edge}": {} if c == "." else {R: c == "y"} for edge, c in said}


class Run:
    """The director's loop: a step a second."""

    def __init__(self, policy: HealthPolicy = POLICY) -> None:
        self.policy = policy
        self.now_s = T0
        self.verdicts: dict[str, Verdict] = {}

    def step(self, reach: str, well: bool | None, after_s: float = 1.0) -> Verdict:
        self.now_s += after_s
        self.verdicts = advance(self.verdicts, seen(reach), {R: well}, self.policy, self.now_s)
        return self.verdicts[R]

    def steps(self, seconds: int, reach: str, well: bool | None) -> Verdict:
        for _ in range(seconds):
            verdict = self.step(reach, well)
        return verdict

    def until(self, up: bool, reach: str, well: bool | None, at_most_s: int = 2_000) -> int:
        """Seconds until the verdict is `up`."""
        for second in range(1, at_most_s + 1):
            if self.step(reach, well).up is up:
                return second
        raise AssertionError(f"not within {at_most_s} s")


@pytest.mark.parametrize(
    ("reach", "well", "up"),
    [
        ("nnnn", False, False),  # all edges and the registry
        ("nnny", False, False),  # more than half
        ("nnyy", False, True),  # half is not more than half
        ("nyyy", False, True),
        ("nnnn", True, True),  # the registry knows a healthy core
        ("nnnn", None, True),  # the registry is away: nobody is newly declared down
        ("....", False, True),  # no edge says anything
        ("n...", False, True),  # one edge's view stays that edge's
        ("nn..", False, False),
        ("ny..", False, True),
        ("yyyy", False, True),  # the registry alone says nothing about reachability
    ],
)
def test_who_must_agree_that_a_region_is_down(reach: str, well: bool | None, up: bool) -> None:
    run = Run()
    run.step("yyyy", True)
    assert run.steps(20, reach, well).up is up


@pytest.mark.parametrize(
    ("reach", "well", "up"),
    [
        ("yyyy", True, True),
        ("yyyn", True, True),
        ("yynn", True, False),  # half is not more than half
        ("ynnn", True, False),
        ("yyyy", None, True),  # a registry that is away holds no region down
        ("yyyy", False, False),  # one that says no does
        ("....", True, False),  # no edge says that it is back
        ("y...", True, True),  # each edge goes by its own view besides
    ],
)
def test_who_must_agree_that_a_region_is_back(reach: str, well: bool | None, up: bool) -> None:
    run = Run()
    run.step("yyyy", True)
    assert not run.steps(10, "nnnn", False).up
    assert run.steps(20, reach, well).up is up


def test_a_region_nobody_has_judged_is_up_and_one_that_is_gone_is_forgotten() -> None:
    run = Run()
    assert run.step("nnnn", False).up
    run.steps(10, "nnnn", False)
    elsewhere = {**seen("nnnn"), "edge/rome": {"atlantis": False}}
    after = advance(run.verdicts, elsewhere, {"dubai": True}, POLICY, run.now_s + 1)
    assert set(after) == {"dubai"} and after["dubai"].up


def test_a_world_that_starts_waits_for_nobody() -> None:
    """Edges are there before the cores have loaded their weights."""
    run = Run()
    run.step("nnnn", False)
    assert run.until(False, "nnnn", False) <= 1 + POLICY.down_after_s
    run.steps(30, "nnnn", False)
    assert run.until(True, "yyyy", True) == 1 + POLICY.down_after_s
    assert run.verdicts[R].flaps == 0
    run.until(False, "nnnn", False)  # from now on it is as any other
    assert run.until(True, "yyyy", True) == 1 + POLICY.up_after_s


def test_the_thresholds_are_asymmetric() -> None:
    run = Run()
    run.step("yyyy", True)
    assert run.until(False, "nnnn", False) == 1 + POLICY.down_after_s
    assert run.until(True, "yyyy", True) == 1 + POLICY.up_after_s


def test_evidence_must_be_continuous() -> None:
    run = Run()
    run.step("yyyy", True)
    for _ in range(10):
        assert run.steps(3, "nnnn", False).up
        assert run.step("nnyy", False).up


def test_flaps_are_damped_forgiven_and_bounded() -> None:
    run = Run()
    run.step("yyyy", True)
    waits = []
    for _ in range(12):
        run.until(False, "nnnn", False)
        waits.append(run.until(True, "yyyy", True))
    assert waits == sorted(waits) and waits[0] == 16 and waits[1] > 25 and waits[2] > 40
    assert waits[-1] <= POLICY.flap_longest_hold_s + 1
    run.now_s += 10 * POLICY.flap_half_life_s
    run.until(False, "nnnn", False)
    assert run.until(True, "yyyy", True) == 16


def test_the_longest_hold_is_the_longest() -> None:
    run = Run(HealthPolicy(flap_half_life_s=1e5, flap_longest_hold_s=120))
    run.step("yyyy", True)
    waits = []
    for _ in range(8):
        run.until(False, "nnnn", False)
        waits.append(run.until(True, "yyyy", True))
    assert waits[:3] == [16, 31, 61] and set(waits[4:]) == {121}


def test_the_reason_is_told() -> None:
    run = Run()
    run.step("yyyy", True)
    run.until(False, "nnny", False)
    assert run.verdicts[R].why == "1 of 4 edges reach it; no healthy core is registered"
    run.until(True, "yyyy", None)
    assert run.verdicts[R].why == "4 of 4 edges reach it; the registry is away"


def test_a_verdict_that_stands_is_the_same_value() -> None:
    """What does not change is not written again each second."""
    run = Run()
    run.step("yyyy", True)
    run.until(False, "nnnn", False)
    run.step("nnnn", False)
    before = run.verdicts
    run.steps(50, "nnnn", False)
    assert run.verdicts == before
    changes = 0
    while not run.verdicts[R].up:
        held = run.verdicts
        run.step("yyyy", True)
        changes += run.verdicts != held
    assert changes <= 8


def test_workers_of_one_edge_have_one_vote() -> None:
    workers: Seen = {f"edge/tokyo/{n}": {R: False} for n in range(8)}
    others: Seen = {"edge/london": {R: True}, "edge/lima": {R: True}, "edge/accra": {R: False}}
    votes = count(workers | others, [R])[R]
    assert (votes.reach, votes.miss) == (2, 2)
    one_reaches = workers | {"edge/tokyo/3": {R: True}}
    assert count(one_reaches, [R])[R].miss == 0
    strangers: Seen = {"core/x": {R: False}, "": {R: False}, "edge": {R: False}, "edge/": {R: True}}
    votes = count(strangers, [R])[R]
    assert (votes.reach, votes.miss) == (0, 0)


@pytest.mark.parametrize("quorum", [0.0, 0.3, 0.5, 0.8, 1.0])
def test_no_quorum_makes_both_true_at_once(quorum: float) -> None:
    policy = HealthPolicy(quorum=quorum)
    for reach in range(6):
        for miss in range(6):
            said = {f"edge/y{n}": {R: True} for n in range(reach)}
            said |= {f"edge/n{n}": {R: False} for n in range(miss)}
            votes = count(said, [R])[R]
            assert not (votes.say_down(policy.quorum) and votes.say_up(policy.quorum))
            if miss == 0 and reach:
                assert votes.say_up(policy.quorum)


# Clocks that jump


@pytest.mark.parametrize("leap_s", [30.0, 3_600.0, 10**9, -30.0, -3_600.0])
def test_a_leap_of_the_clock_is_no_evidence(leap_s: float) -> None:
    run = Run()
    run.step("yyyy", True)
    run.step("nnnn", False)
    assert run.step("nnnn", False, leap_s).up
    assert not run.steps(4, "nnnn", False).up
    assert not run.step("yyyy", True).up
    assert not run.step("yyyy", True, leap_s).up
    assert run.until(True, "yyyy", True) <= POLICY.up_after_s + 1


def test_a_clock_that_was_set_back_does_not_stop_time() -> None:
    run = Run()
    run.step("yyyy", True)
    run.until(False, "nnnn", False)
    run.now_s -= 100_000
    assert run.step("nnnn", False).since_s <= run.now_s
    assert run.until(True, "yyyy", True) <= POLICY.up_after_s + 1
    assert run.verdicts[R].since_s <= run.now_s


moments = st.tuples(
    st.sampled_from(["nnnn", "nnny", "nnyy", "nyyy", "yyyy", "....", "n...", "nn.."]),
    st.sampled_from([True, False, None]),
    st.sampled_from([0.0, 0.3, 1.0, 1.0, 1.0, 5.0, 400.0, 1e9, -1.0, -1e9]),
)


@given(st.lists(moments, max_size=60))
def test_whatever_the_clock_does(steps: list[tuple[str, bool | None, float]]) -> None:
    run = Run()
    before = run.step("yyyy", True)
    agreed = 0  # steps in a row that spoke against the verdict
    for reach, well, after_s in steps:
        votes = count(seen(reach), [R])[R]
        if before.up:
            against = votes.say_down(0.5) and well is False
        else:
            against = votes.say_up(0.5) and well is not False
        agreed = agreed + 1 if against else 0
        after = run.step(reach, well, after_s)
        if after.up != before.up:
            assert agreed >= 3, "one step, however long, is not enough"
            agreed = 0
        assert after.since_s <= run.now_s or after.since_s == before.since_s
        assert math.isfinite(after.flaps) and 0 <= after.flaps < 20
        before = after


# A naive oracle


@dataclass
class Naive:
    """Remembers everything it was told, a second at a time, and looks at all of it again."""

    policy: HealthPolicy
    up: bool = True
    since: int = 0
    penalty: float = 0.0
    now: int = -1
    against: list[bool] | None = None
    proven: bool = False

    def tell(self, said: Seen, well: bool | None) -> bool:
        self.now += 1
        edges: dict[str, list[bool]] = {}
        for node, regions in said.items():
            if R in regions:
                edges.setdefault(node.split("/")[1], []).append(regions[R])
        reach = [edge for edge, views in edges.items() if any(views)]
        miss = [edge for edge, views in edges.items() if not any(views)]
        down = len(miss) >= 2 and len(miss) / len(edges) > self.policy.quorum
        back = not down and bool(reach)
        back = back and (not miss or len(reach) / len(edges) > self.policy.quorum)
        self.proven = self.proven or (self.up and (back or well is True))
        if self.against is None:
            self.against = []
            return self.up
        self.against.append(down and well is False if self.up else back and well is not False)
        run = 0
        while run < len(self.against) and self.against[-1 - run]:
            run += 1
        if run - 1 >= self._hold() and run > 0:
            self._turn()
        return self.up

    def _decayed(self) -> float:
        penalty = self.penalty * 2 ** (-(self.now - self.since) / self.policy.flap_half_life_s)
        return penalty if penalty >= 0.01 else 0.0

    def _hold(self) -> float:
        if self.up or not self.proven:
            return self.policy.down_after_s
        longest = self.policy.flap_longest_hold_s
        return min(self.policy.up_after_s * 2 ** max(0.0, self._decayed() - 1), longest)

    def _turn(self) -> None:
        most = 1 + math.log2(self.policy.flap_longest_hold_s / self.policy.up_after_s)
        flap = self.up and self.proven
        self.penalty = min(self._decayed() + 1, most) if flap else self._decayed()
        self.proven = self.proven or not self.up
        self.up, self.since, self.against = not self.up, self.now, []


phases = st.tuples(
    st.dictionaries(
        st.sampled_from([f"edge/{e}{w}" for e in EDGES for w in ("", "/0", "/1")]),
        st.sampled_from([{R: True}, {R: False}, {R: False}, {}]),
        max_size=9,
    ),
    st.sampled_from([True, False, False, None]),
    st.integers(1, 40),
)


@given(
    st.lists(phases, max_size=25),
    st.sampled_from([0.3, 0.5, 0.75]),
    st.sampled_from([(3.0, 15.0), (4.0, 5.0), (6.0, 30.0)]),
)
def test_it_does_what_a_naive_oracle_does(
    story: list[tuple[Seen, bool | None, int]], quorum: float, holds: tuple[float, float]
) -> None:
    policy = HealthPolicy(
        quorum=quorum,
        down_after_s=holds[0],
        up_after_s=holds[1],
        flap_half_life_s=60,
        flap_longest_hold_s=120,
    )
    oracle, verdicts, now_s = Naive(policy), dict[str, Verdict](), T0
    for said, well, seconds in story:
        for _ in range(seconds):
            kept = copy.deepcopy((said, verdicts))
            verdicts, before = advance(verdicts, said, {R: well}, policy, now_s), verdicts
            assert (said, before) == kept, "inputs are never changed"
            assert verdicts[R].up == oracle.tell(said, well)
            now_s += 1


@given(
    st.lists(st.sampled_from(["yyy", "nnn"]), min_size=30, max_size=80),
    st.lists(st.booleans(), min_size=80, max_size=80),
)
def test_a_single_edges_view_never_matters_to_others(
    rest: Iterable[str], lonely: list[bool]
) -> None:
    """Where the other three agree among themselves, the fourth changes nothing."""
    with_it, without = Run(), Run()
    for others, view in zip(rest, lonely, strict=False):
        first = with_it.step(others + ("y" if view else "n"), others == "yyy")
        second = without.step(others + ".", others == "yyy")
        assert (first.up, first.since_s) == (second.up, second.since_s)


def test_holds_and_penalties() -> None:
    verdict = Verdict(up=False, since_s=T0, flaps=4.0, proven=True)
    assert penalty_at(verdict, POLICY, T0) == 4.0
    assert penalty_at(verdict, POLICY, T0 + 300) == 2.0
    assert penalty_at(verdict, POLICY, T0 - 300) == 4.0
    assert penalty_at(verdict, POLICY, T0 + 1e7) == 0.0
    assert [hold_down_s(p, POLICY) for p in (0, 1, 2, 3, 100)] == [15, 15, 30, 60, 600]
    short = HealthPolicy(up_after_s=900, flap_longest_hold_s=600)
    assert hold_down_s(9, short) == 900
