"""What requests cost in tokens, and tenants' limits in them."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_node.admission.limiter import (
    ANSWER_TOKENS,
    DEBT_MOST_S,
    AnswerTokens,
    TokenBucket,
)
from edge_node.admission.quota import OverLimit, Quotas
from tests.edge_node import worlds as edges
from tests.topology import worlds
from topology.directive import Directive
from topology.snapshot import Snapshot


def world(**limit: float) -> Snapshot:
    spec = {"limit": {"requests_per_s": 100.0, **limit}} if limit else {}
    return worlds.base(worlds.document("Tenant", "acme", **spec))


def quotas(snapshot: Snapshot) -> Quotas:
    made = Quotas(Random(1))
    made.use(snapshot, 0.0)
    return made


# Estimates


def test_unknown_models_are_thought_to_answer_at_middling_length() -> None:
    answers = AnswerTokens()
    assert answers.cost("m", 400) == 100 + ANSWER_TOKENS
    assert answers.cost("m", 400, max_tokens=7) == 107
    assert answers.cost("m", 400, max_tokens=10_000) == 100 + ANSWER_TOKENS


def test_models_are_known_by_their_answers() -> None:
    answers = AnswerTokens()
    for _ in range(200):
        answers.add("long", 900)
        answers.add("short", 10)
    assert answers.cost("long", 0) == pytest.approx(900)
    assert answers.cost("short", 0) == pytest.approx(10)
    for _ in range(200):
        answers.add("long", 100)
    assert answers.cost("long", 0) == pytest.approx(100, rel=0.01)


def test_names_and_lies_are_bounded() -> None:
    answers = AnswerTokens(names_most=2)
    for name in ("a", "b", "c"):
        answers.add(name, 2**53)
    assert answers.cost("a", 0) < 2**21
    assert answers.cost("c", 0) == ANSWER_TOKENS


# The bucket


def test_one_more_is_let_in_and_what_it_owes_is_waited_for() -> None:
    bucket = TokenBucket(100.0, 1.0, 0.0)
    assert bucket.wait_s(0.0) == 0.0  # it begins with next to nothing, and lets one in
    bucket.take(500.0)
    assert bucket.wait_s(0.0) == pytest.approx(5.0)
    assert bucket.wait_s(4.0) == pytest.approx(1.0)
    assert bucket.wait_s(5.0) == 0.0


def test_what_was_not_used_is_given_back() -> None:
    bucket = TokenBucket(100.0, 1.0, 0.0)
    bucket.take(500.0)
    bucket.take(-480.0)
    assert bucket.wait_s(0.0) == pytest.approx(0.2)
    bucket.take(-1e9)
    assert bucket.tokens == bucket.capacity


def test_more_is_never_given_back_than_was_taken() -> None:
    bucket = TokenBucket(1.0, 1.0, 0.0)
    charged = bucket.take(1e6)  # far beyond the debt that there may be
    bucket.take(2.0 - charged)
    assert bucket.tokens == pytest.approx(-1.0)


def test_no_debt_is_larger_than_its_bound() -> None:
    bucket = TokenBucket(100.0, 1.0, 0.0)
    bucket.take(1e12)
    assert bucket.wait_s(0.0) == DEBT_MOST_S
    assert bucket.wait_s(DEBT_MOST_S + 0.1) == 0.0


def test_a_node_without_a_part_lets_nobody_in() -> None:
    bucket = TokenBucket(0.0, 1.0, 0.0)
    bucket.take(1.0)
    assert bucket.wait_s(1e6) == DEBT_MOST_S
    bucket.set(10.0, 1.0, 1e6)
    assert bucket.wait_s(1e6 + 0.2) == 0.0


@given(
    st.lists(st.tuples(st.floats(0, 2), st.floats(0, 500), st.floats(0, 600)), max_size=80),
    st.floats(1, 1000),
    st.floats(0.01, 5),
)
def test_never_more_than_the_rate_the_burst_and_one_request(
    requests: list[tuple[float, float, float]], rate: float, burst_s: float
) -> None:
    """Estimates that are settled at once: as little or as much as they came to."""
    bucket, now, used, largest = TokenBucket(rate, burst_s, 0.0), 0.0, 0.0, 0.0
    for past, thought, came_to in requests:
        now += past
        if bucket.wait_s(now) == 0.0:
            bucket.take(came_to - bucket.take(thought))
            if bucket.tokens > -DEBT_MOST_S * rate:
                used += came_to
            largest = max(largest, came_to)
        assert used <= rate * now + max(1.0, rate * burst_s) + largest + 1e-6


@given(st.lists(st.tuples(st.floats(-1e9, 1e9), st.floats(-1e6, 1e6)), max_size=60))
def test_a_clock_that_jumps_leaves_it_within_its_bounds(steps: list[tuple[float, float]]) -> None:
    bucket = TokenBucket(50.0, 2.0, 0.0)
    for now, tokens in steps:
        wait_s = bucket.wait_s(now)
        assert 0.0 <= wait_s <= DEBT_MOST_S
        bucket.take(tokens)
        assert -DEBT_MOST_S * 50 <= bucket.tokens <= 100


def test_a_clock_that_was_far_ahead_for_a_moment_keeps_nobody_out() -> None:
    bucket = TokenBucket(50.0, 2.0, 0.0)
    for now in (1.0, 1e9, 2.0):
        bucket.take(200.0)
        bucket.wait_s(now)
    assert bucket.wait_s(2.0 + DEBT_MOST_S) == 0.0


# At a node


def test_tokens_have_the_part_that_requests_have() -> None:
    node = quotas(world(tokens_per_s=10_000.0))
    node.direct(Directive(quotas={"acme": 25.0}, floors={"acme": 10.0}), 0.0)
    node.confirm(0.0)
    node.admit("acme", 0.0)
    node.charge("acme", 5_000.0)  # two seconds of a quarter of 10,000
    with pytest.raises(OverLimit) as refused:
        node.admit("acme", 0.1)
    assert 1.9 <= refused.value.retry_s <= 4.0  # spread, and never sooner than it may succeed
    assert "10000 tokens per second" in refused.value.message
    node.admit("acme", 2.2)


def test_what_an_answer_came_to_counts() -> None:
    node = quotas(world(tokens_per_s=5_000.0))  # 100 a second for a newcomer
    node.admit("acme", 0.0)
    node.settle("acme", node.charge("acme", 1_000.0), 30.0)
    node.admit("acme", 1.0)
    node.settle("acme", node.charge("acme", 10.0), 1_000.0)
    with pytest.raises(OverLimit) as refused:
        node.admit("acme", 2.0)
    assert refused.value.retry_s > 7


def test_refused_for_tokens_counts_as_asked() -> None:
    """The director splits by what was asked for."""
    node = quotas(world(tokens_per_s=5_000.0))
    node.admit("acme", 0.0)
    node.charge("acme", 1_000.0)
    for _ in range(5):
        with pytest.raises(OverLimit):
            node.admit("acme", 0.1)
    assert node.asked == {"acme": 6}


def test_tenants_without_such_a_limit_are_not_counted() -> None:
    node = quotas(world())
    node.charge("acme", 1e9)
    node.admit("acme", 0.0)
    node.use(world(tokens_per_s=1.0), 1.0)
    node.charge("acme", 1e9)
    node.use(world(burst_s=1.0), 2.0)
    node.admit("acme", 3.0)  # the limit in tokens has been taken away, and its debt with it
    assert not any("quota_tokens" in sample.name for sample in node.samples(3.0))


async def test_an_edge_charges_what_answers_come_to() -> None:
    """7 tokens of input and 9 of answer, at one a second: the next may come 15 s later."""
    limit = {"requests_per_s": 1000.0, "tokens_per_s": 50.0}  # a newcomer has a fiftieth of it
    async with edges.running(
        edges.upstream(), edges.snapshot(edges.tenant("acme", edges.ACME, limit=limit))
    ) as edge:
        first = await edges.post(edge, edges.ask())
        assert first.status_code == 200
        cached = edge.app.quotas.asked["acme"]
        again = await edges.post(edge, edges.ask(temperature=1.0))
        assert again.status_code == 429
        assert "50 tokens per second" in again.json()["error"]["message"]
        assert 12 <= int(again.headers["retry-after"]) <= 31
        assert edge.app.quotas.asked["acme"] == cached + 1
