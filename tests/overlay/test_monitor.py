"""Paths judged on a clock that we hold."""

from __future__ import annotations

from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.overlay.path_world import NOTHING, PathWorld
from topology.overlay.monitor import PathMonitor, Rules
from topology.overlay.probe import Echo

BUSY_S, PATIENCE_S = Rules().busy_every_s, Rules().patience_s


def warm(world: PathWorld) -> PathWorld:
    world.run(3.0)
    assert world.state == "up"
    world.asked.clear()
    return world


def test_an_idle_path_is_asked_once_a_second_and_stays_up() -> None:
    world = warm(PathWorld())
    world.run(60.0)
    gaps = [b - a for a, b in zip(world.asked, world.asked[1:], strict=False)]
    assert len(world.asked) in (60, 61)
    assert max(gaps) - min(gaps) < 0.005
    assert {state for _, state, _ in world.states} == {"up"}


def test_a_new_path_is_asked_a_few_times_quickly() -> None:
    world = PathWorld(0.1)
    world.run(1.0)
    assert 8 <= len(world.asked) <= 10
    assert world.estimate.jitter_ms is not None
    assert world.estimate.jitter_ms < 10


def test_open_exchanges_make_it_ask_often_and_it_stops_with_them() -> None:
    world = warm(PathWorld())
    world.busy = True
    world.run(2.0)
    often = len(world.asked)
    assert often == pytest.approx(2.0 / BUSY_S, rel=0.1)
    world.busy = False
    world.run(10.0)
    assert len(world.asked) - often <= 11


def test_acknowledged_data_asks_as_well_as_a_probe() -> None:
    """Traffic that is acknowledged needs few probes: those that ask how the region is."""
    monitor = PathMonitor(10.0, Rules(), NOTHING)
    now, probes = 10.0, 0
    for n in range(1, 400):
        now += 0.01
        seen = msgspec.structs.replace(NOTHING, asked=n, asked_s=now - 0.001, acked=n - 1)
        verdict = monitor.judge(now, seen, busy=True)
        if verdict.probe is not None:
            probes += 1
            monitor.echoed(Echo(verdict.probe, probes, probes, False), now + 0.001)
    assert monitor.state == "up"
    assert probes == pytest.approx(4.0 / 0.25, abs=2)


def test_data_without_an_acknowledgement_makes_a_path_silent() -> None:
    monitor = PathMonitor(10.0, Rules(), NOTHING)
    now = 10.0
    for number in range(1, 200):
        now += 0.02
        seen = msgspec.structs.replace(NOTHING, asked=number, asked_s=now, heard_s=now)
        monitor.judge(now, seen, busy=True)
        if monitor.state == "silent":
            break
    assert monitor.state == "silent"
    assert "what we send does not arrive" in monitor.why  # for much was heard


@pytest.mark.parametrize("way", ["there", "back", "both"])
@pytest.mark.parametrize("rtt_s", [0.001, 0.02, 0.09, 0.27])
@pytest.mark.parametrize("busy", [True, False])
def test_a_cut_of_either_way_is_found_in_time(way: str, rtt_s: float, busy: bool) -> None:
    world = warm(PathWorld(rtt_s))
    world.busy = busy
    world.run(5.0)
    cut = world.now
    for name in ("there", "back") if way == "both" else (way,):
        setattr(world, name, lambda now: now < cut)
    assert world.run(5.0, lambda: world.state == "silent")
    if busy:
        assert world.now - cut <= rtt_s + PATIENCE_S + BUSY_S + 0.01
    else:
        assert world.now - cut <= 1.0 + 2 * rtt_s + PATIENCE_S + 0.1
    assert "nothing comes back" in world.monitor.why
    assert world.run(3.5, lambda: world.over)


@pytest.mark.parametrize(("way", "told"), [("there", "did not arrive"), ("back", "arrived")])
def test_a_mended_path_is_up_with_its_first_answer_and_tells_which_way_was_cut(
    way: str, told: str
) -> None:
    world = warm(PathWorld(0.05))
    world.busy = True
    cut, mended = world.now + 1.0, world.now + 2.5
    setattr(world, way, lambda now: not cut <= now < mended)
    assert world.run(2.4, lambda: world.state == "silent")
    world.busy = False  # its exchanges were failed
    assert world.run(2.0, lambda: world.state == "up")
    assert world.now - mended < 0.1 + 0.05 + 0.01
    assert told in world.estimate.why
    world.run(15.0)
    assert world.estimate.why == ""
    assert world.estimate.loss_out == world.estimate.loss_back == 0.0


def test_what_a_cut_cost_is_no_share_of_loss_however_late_it_is_looked_at() -> None:
    """QUIC takes the packets of the cut for lost when it hears of newer ones; an idle path looks
    at its counts once a second."""
    monitor = PathMonitor(10.0, Rules(), NOTHING)
    now = 10.0
    seen = msgspec.structs.replace(NOTHING, delivered=50, received=50, expected=50)
    while monitor.state != "silent":
        now += 0.02
        if monitor.judge(now, seen, busy=True).probe is not None:
            asked = monitor.probes
    monitor.echoed(Echo(asked - 1, 1, 1, False), now)
    assert monitor.state == "up"
    seen = msgspec.structs.replace(seen, lost=20, delivered=51, received=51, expected=71)
    monitor.judge(now + 1.0, seen, busy=False)
    seen = msgspec.structs.replace(seen, delivered=61, received=61, expected=81)
    monitor.judge(now + 2.0, seen, busy=False)
    estimate = monitor.estimate(now + 2.0)
    assert estimate.loss_out == estimate.loss_back == 0.0


def test_a_process_that_was_stopped_does_not_blame_the_path() -> None:
    world = warm(PathWorld())
    world.busy = True
    for seconds in (0.05, 0.1, 0.3, 1.0, 5.0, 60.0):
        world.run(0.5)
        world.sleep(seconds)
        world.run(1.0)
    assert "silent" not in {state for _, state, _ in world.states}


@pytest.mark.parametrize("rtt_s", [0.02, 0.25])
@pytest.mark.parametrize("stopped_s", [0.3, 2.0, 60.0])
def test_a_stop_measures_nothing_and_finds_nothing_overdue(rtt_s: float, stopped_s: float) -> None:
    """Answers that waited in the socket are read one by one, before the path is judged."""
    world = warm(PathWorld(rtt_s))
    world.busy = True
    world.run(5.0)
    before, patience_s = world.estimate, world.monitor.patience_s
    world.sleep(stopped_s)
    world.run(1.0)
    assert {state for _, state, _ in world.states} == {"up"}
    assert world.monitor.patience_s == pytest.approx(patience_s, abs=0.005)
    assert world.estimate.smoothed_ms == pytest.approx(before.smoothed_ms, abs=1.0)
    assert world.estimate.rtt_ms == pytest.approx(rtt_s * 1000, abs=0.01)


def test_who_is_behind_with_its_socket_blames_nobody_and_a_cut_is_found_after_that() -> None:
    """A busy edge, or a flood: the answers may wait behind what else has come."""
    monitor, now = PathMonitor(10.0, Rules(), NOTHING), 10.0
    probes = 0
    while now < 13.0:  # nothing is answered
        now += 0.01
        probes += monitor.judge(now, NOTHING, True, behind=True).probe is not None
    assert monitor.state != "silent"
    assert probes > 10
    monitor.echoed(Echo(0, 1, 1, False), now)  # an old one, and more overdue behind it
    assert monitor.state != "silent"
    caught_up = now
    while monitor.state != "silent":
        now += 0.01
        monitor.judge(now, NOTHING, True)
        assert now < caught_up + 3.0
    assert now > caught_up + PATIENCE_S


def test_a_process_that_is_always_late_measures_all_the_same() -> None:
    world = PathWorld(0.02)
    world.busy = True
    for _ in range(60):
        world.run(0.05)
        world.sleep(0.03)
    assert world.estimate.smoothed_ms is not None
    assert 15 < world.estimate.smoothed_ms < 60
    assert world.monitor._measured
    assert "silent" not in {state for _, state, _ in world.states}


def test_a_region_that_was_stopped_too_gets_its_time() -> None:
    """Both ends stop, as on a machine that swaps: nothing is in the socket when we go on."""
    world = warm(PathWorld())
    world.busy = True
    world.run(0.33)
    world._flying.clear()
    world.sleep(2.0)
    world.run(1.0)
    assert "silent" not in {state for _, state, _ in world.states}


def test_a_region_that_says_it_is_stalled_is_stalled_and_its_path_is_not() -> None:
    world = warm(PathWorld())
    world.stalled = world.busy = True
    assert world.run(0.3, lambda: world.state == "stalled")
    assert "serves nothing" in world.estimate.why
    world.run(5.0)
    world.stalled = False
    assert world.run(0.3, lambda: world.state == "up")
    world.stalled = True
    world.run(1.0)
    cut = world.now
    world.back = lambda now: now < cut
    assert world.run(0.3, lambda: world.state == "silent")


@pytest.mark.parametrize("way", ["there", "back"])
def test_loss_is_told_by_its_way_and_is_not_taken_for_a_cut(way: str) -> None:
    world = warm(PathWorld(0.03))
    world.busy = True
    rng = Random(5)
    setattr(world, way, lambda now: rng.random() >= 0.1)
    world.run(30.0)
    silences = [state for _, state, _ in world.states].count("silent")
    assert silences == 0
    estimate = world.estimate
    lossy, other = estimate.loss_out, estimate.loss_back
    if way == "back":
        lossy, other = other, lossy
    assert lossy is not None
    assert 0.01 < lossy < 0.35
    assert other == 0.0
    assert ("we send" if way == "there" else "comes back") in estimate.why
    assert "without delay" in estimate.why


def test_delay_without_loss_is_told() -> None:
    world = warm(PathWorld(0.03))
    world.run(20.0)
    assert world.estimate.why == ""
    world.rtt_s = 0.11
    world.busy = True
    world.run(3.0)
    estimate = world.estimate
    assert "longer than usual, without loss" in estimate.why
    assert estimate.smoothed_ms == pytest.approx(110, abs=5)
    assert "silent" not in {state for _, state, _ in world.states}
    world.run(12.0)
    assert world.estimate.rtt_ms == pytest.approx(110, abs=5)


def test_a_path_in_silence_and_in_suspicion_is_asked_at_a_bounded_rate() -> None:
    world = warm(PathWorld(0.05))
    world.busy = True
    cut = world.now
    world.there = lambda now: now < cut
    world.run(10.0)
    assert world.over
    assert len(world.asked) < 60


@pytest.mark.parametrize(
    "echo",
    [
        Echo(10**6, 1, 1, False),  # was never asked
        Echo(0, 10**6, 1, False),  # more arrived than were sent
        Echo(-1, 0, 0, False),
    ],
)
def test_an_echo_that_lies_changes_nothing(echo: Echo) -> None:
    world = warm(PathWorld())
    before = world.estimate
    assert not world.monitor.echoed(echo, world.now)
    assert world.estimate == before


def test_a_region_that_counts_wrongly_is_still_heard() -> None:
    world = warm(PathWorld())
    newest = world.monitor._newest
    assert world.monitor.echoed(Echo(newest, 1, 2**32 - 1, False), world.now)
    world.run(30.0)
    assert world.state == "up"
    assert "silent" not in {state for _, state, _ in world.states}


@settings(max_examples=60, deadline=None)
@given(
    st.integers(10, 3000), st.integers(10, 400), st.integers(10, 1000), st.integers(0, 4000),
    st.floats(0.0, 0.9), st.floats(0.0005, 0.5), st.integers(0, 2**32), st.booleans(),
)  # fmt: skip
def test_whatever_is_set_and_whatever_is_lost_it_asks_at_a_bounded_rate(
    idle_ms: int, busy_ms: int, patience_ms: int, keep_ms: int,
    loss: float, rtt_s: float, seed: int, busy: bool,
) -> None:  # fmt: skip
    rules = Rules(idle_ms / 1000, busy_ms / 1000, patience_ms / 1000, 4.0, keep_ms / 1000)
    world, rng = PathWorld(rtt_s, rules=rules, seed=seed), Random(seed)
    world.there = world.back = lambda now: rng.random() >= loss
    world.busy = busy
    began = world.now
    world.run(20.0)
    fastest = max(1000 / min(idle_ms, busy_ms), 50.0)
    assert len(world.asked) <= 10 + fastest * 1.05 * (world.now - began)
    for share in (world.estimate.loss_out, world.estimate.loss_back):
        assert share is None or 0.0 <= share <= 1.0


def test_old_and_repeated_echoes_are_no_samples() -> None:
    world = warm(PathWorld())
    before = world.estimate
    newest = world.monitor._newest
    for number in (newest, newest - 1, newest - 3):
        world.monitor.echoed(Echo(number, number + 1, number + 1, False), world.now + 0.5)
    after = world.monitor.estimate(world.now)
    assert (after.rtt_ms, after.jitter_ms, after.loss_back) == (
        before.rtt_ms, before.jitter_ms, before.loss_back,
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    st.floats(0.0005, 0.4), st.floats(0.0, 0.06), st.integers(0, 2**32), st.booleans(),
    st.lists(st.tuples(st.floats(0.0, 2.0), st.floats(0.0, 0.5), st.booleans()), max_size=8),
)  # fmt: skip
def test_never_silent_while_answers_come(
    rtt_s: float, jitter_s: float, seed: int, busy: bool,
    moments: list[tuple[float, float, bool]],
) -> None:  # fmt: skip
    """Whatever the distance, with jitter, with our own process stopping now and then."""
    world = PathWorld(rtt_s, jitter_s=jitter_s, seed=seed)
    world.busy = busy
    for seconds, pause, flip in moments:
        world.run(seconds)
        world.sleep(pause)
        world.busy ^= flip
    world.run(5.0)
    world.jitter_s = 0.0  # so that nothing that was overtaken is under way at the end
    world.run(1.0)
    assert "silent" not in {state for _, state, _ in world.states}
    estimate = world.estimate
    assert estimate.rtt_ms is not None
    assert rtt_s * 1000 - 0.01 <= estimate.rtt_ms
    assert estimate.loss_out == estimate.loss_back == 0.0


@settings(max_examples=60, deadline=None)
@given(
    st.floats(0.0005, 0.4), st.floats(0.0, 0.03), st.integers(0, 2**32), st.floats(0.5, 6.0),
    st.sampled_from(["there", "back", "both"]), st.booleans(),
)  # fmt: skip
def test_always_silent_within_the_bound_after_answers_stop(
    rtt_s: float, jitter_s: float, seed: int, after: float, way: str, busy: bool
) -> None:
    world = PathWorld(rtt_s, jitter_s=jitter_s, seed=seed)
    world.run(2.0)
    world.busy = busy
    world.run(after)
    cut = world.now
    for name in ("there", "back") if way == "both" else (way,):
        setattr(world, name, lambda now: now < cut)
    assert world.run(10.0, lambda: world.state == "silent")
    patience = world.monitor.patience_s + 2 * jitter_s
    bound = patience + BUSY_S if busy else patience + 1.0 + world.monitor._suspect_s + 0.1
    assert world.now - cut <= bound + 0.05


@settings(max_examples=40, deadline=None)
@given(
    st.floats(0.0, 0.6), st.floats(0.0, 0.6), st.integers(0, 2**32), st.floats(0.5, 20.0),
    st.booleans(),
)  # fmt: skip
def test_losses_are_what_a_naive_count_says(
    there: float, back: float, seed: int, seconds: float, busy: bool
) -> None:
    """Without a silence in it, every probe and echo is counted; the window's sums are the share."""
    rng = Random(seed)
    fates: list[tuple[float, bool]] = []
    echoes: list[tuple[float, bool]] = []

    def go(fate: list[tuple[float, bool]], share: float, now: float) -> bool:
        fate.append((now, rng.random() >= share))
        return fate[-1][1]

    rules = Rules(patience_s=1e6)  # never silent
    world = PathWorld(0.001, rules=msgspec.structs.replace(rules, busy_every_s=0.05))
    world.there = lambda now: go(fates, there, now)
    world.back = lambda now: go(echoes, back, now)
    world.busy = busy
    world.run(seconds)
    estimate = world.estimate
    last = world.monitor._newest  # what came after the last echo is not known yet
    known = [ok for _, ok in fates[: last + 1]]
    known_back = [ok for _, ok in echoes[: sum(known)]]
    if len(known) <= 30 and last >= 0:
        assert estimate.loss_out == pytest.approx(known.count(False) / len(known))
        assert estimate.loss_back == pytest.approx(known_back.count(False) / len(known_back))
    elif last < 0:
        assert estimate.loss_out is None
    else:
        assert estimate.loss_out is not None
        assert abs(estimate.loss_out - there) < 0.45
