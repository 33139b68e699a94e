"""The event's arithmetic: how much comes when, from where, from whom, and what is asked."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.storm.event import (
    Ask,
    Drawn,
    Event,
    Population,
    next_try_s,
    plan,
    popularity,
    question_text,
    tenant_names,
)

EVENT = Event()
WHO = Population()


@pytest.fixture(scope="module")
def asks() -> list[Ask]:
    return list(plan(EVENT.phases, EVENT.cities, WHO, seed=7))


def test_rates_are_those_of_the_incident() -> None:
    event = Event(scale=1.0)
    assert event.normal_rps == pytest.approx(8_000 / 60)
    assert event.peak_rps == pytest.approx(120_000 / 60)
    assert event.peak_s == 10.0


@given(
    st.floats(0.01, 1.0),
    st.floats(4.0, 600.0),
    st.floats(0.3, 0.95),
)
def test_83_percent_come_in_the_first_quarter(scale: float, length_s: float, share: float) -> None:
    event = Event(scale=scale, duration_s=length_s, first_quarter_share=share)
    _, peak, tail = event.phases
    first = peak.rps * (peak.ends_s - peak.begins_s)
    rest = tail.rps * (tail.ends_s - tail.begins_s)
    assert first / (first + rest) == pytest.approx(share)
    assert peak.ends_s - peak.begins_s == pytest.approx(length_s / 4)
    assert tail.ends_s == pytest.approx(event.baseline_s + length_s)


def test_requests_of_the_default_event(asks: list[Ask]) -> None:
    event = [ask for ask in asks if ask.phase != "baseline"]
    first = [ask for ask in event if ask.phase == "peak"]
    assert len(first) / len(event) == pytest.approx(0.83, abs=0.002)
    assert len(asks) - len(event) == round(EVENT.baseline_s * EVENT.normal_rps)
    assert [ask.due_s for ask in asks] == sorted(ask.due_s for ask in asks)
    for phase in EVENT.phases:
        mine = [ask.due_s for ask in asks if ask.phase == phase.name]
        assert phase.begins_s <= min(mine)
        assert max(mine) < phase.ends_s


def test_cities_and_tiers_have_their_shares(asks: list[Ask]) -> None:
    event = [ask for ask in asks if ask.phase != "baseline"]
    cities = Counter(ask.city for ask in event)
    for city, share in (("tokyo", 0.42), ("mumbai", 0.28), ("london", 0.15)):
        assert cities[city] / len(event) == pytest.approx(share, abs=0.02)
    assert sum(city.share for city in EVENT.cities) == pytest.approx(1.0)
    tiers = Counter(ask.tier for ask in event)
    for tier, share in (("vip", 0.05), ("standard", 0.70), ("batch", 0.25)):
        assert tiers[tier] / len(event) == pytest.approx(share, abs=0.02)
    calm = Counter(ask.tier for ask in asks if ask.phase == "baseline")
    assert min(calm.values()) / sum(calm.values()) > 0.25


def test_everybody_is_a_tenant_of_the_tier_and_thousands_ask(asks: list[Ask]) -> None:
    names = tenant_names(WHO)
    assert all(ask.tenant in names[ask.tier] for ask in asks)
    assert {ask.tenant for ask in asks} == {name for some in names.values() for name in some}
    assert len({ask.user for ask in asks}) > 2_000


def test_popularity_is_zipf_with_a_hot_question(asks: list[Ask]) -> None:
    weights = popularity(WHO)
    assert weights[0] / weights[9] == pytest.approx(10**WHO.zipf)
    expected = weights[0] / sum(weights)
    found = Counter(ask.question for ask in asks)
    assert found[0] / len(asks) == pytest.approx(expected, abs=0.03)
    assert found.most_common(1)[0][0] == 0
    assert len(found) > 300  # and a long tail
    assert len({question_text(rank) for rank in range(WHO.questions)}) == WHO.questions


def test_a_stated_share_is_deterministic(asks: list[Ask]) -> None:
    share = sum(ask.deterministic for ask in asks) / len(asks)
    assert share == pytest.approx(WHO.deterministic_share, abs=0.03)


def test_the_same_seed_asks_the_same(asks: list[Ask]) -> None:
    assert list(plan(EVENT.phases, EVENT.cities, WHO, seed=7)) == asks
    assert list(plan(EVENT.phases, EVENT.cities, WHO, seed=8)) != asks


@given(st.lists(st.floats(0.0, 100.0), min_size=1, max_size=20), st.integers(0, 1 << 30))
@settings(max_examples=50)
def test_drawing_never_leaves_the_weights(weights: list[float], seed: int) -> None:
    drawn, rng = Drawn([*weights, 1.0]), Random(seed)
    for _ in range(20):
        assert 0 <= drawn.draw(rng) <= len(weights)


@pytest.mark.parametrize(
    ("obedient", "refused", "retry_after_s", "waits_s"),
    [
        (False, False, None, WHO.again_s),  # it timed out
        (True, False, 30.0, WHO.again_s),  # nobody said when
        (False, True, 5.0, WHO.refused_again_s),  # it does not listen
        (True, True, 5.0, 5.0),
        (True, True, 0.0, WHO.again_s),  # never at once
        (True, True, None, WHO.refused_again_s),
        (True, True, 15.0, None),  # later than it will wait
    ],
)
def test_when_clients_send_again(
    obedient: bool, refused: bool, retry_after_s: float | None, waits_s: float | None
) -> None:
    assert next_try_s(WHO, obedient, refused, retry_after_s, since_s=2.0) == waits_s
