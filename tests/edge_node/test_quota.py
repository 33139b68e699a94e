"""A node's part of a tenant's limit: the bucket, what it rests on, and what the client is told."""

from __future__ import annotations

import time
from random import Random

import pytest

from edge_node.admission.quota import Bucket, OverLimit, Quotas
from edge_node.front import respond
from tests.edge_node import worlds as edges
from tests.topology import worlds
from topology.directive import NONE, Directive
from topology.quota import FORGET_HOLDS
from topology.snapshot import Snapshot

HOLD_S = 60.0
GIVEN = Directive(node="edge/london", number=1, quotas={"t": 40.0}, floors={"t": 10.0})


def world(limit: float | None = 100.0, burst_s: float = 1.0) -> Snapshot:
    spec = {} if limit is None else {"limit": {"requests_per_s": limit, "burst_s": burst_s}}
    policy = {"hold_s": HOLD_S, "newcomer_share": 0.02}
    return worlds.base(
        worlds.document("Policy", "default", quota=policy),
        worlds.document("Tenant", "t", **spec),
        worlds.document("Tenant", "free"),
    )


def quotas(snapshot: Snapshot | None = None, directive: Directive = GIVEN) -> Quotas:
    made = Quotas(Random(1))
    made.use(snapshot or world(), 0.0)
    if directive is not NONE:
        made.direct(directive, 0.0)
        made.confirm(0.0)
    return made


def admitted(made: Quotas, start_s: float, seconds: float, per_s: float) -> int:
    """How many of `per_s` evenly spaced requests get through."""
    count = 0
    for n in range(int(seconds * per_s)):
        try:
            made.admit("t", start_s + n / per_s)
        except OverLimit:
            continue
        count += 1
    return count


def test_a_bucket_keeps_to_its_rate_and_burst() -> None:
    made = quotas()
    assert admitted(made, 0.0, 10.0, 400.0) == pytest.approx(400, abs=2)  # it begins with one
    assert admitted(made, 20.0, 10.0, 400.0) == pytest.approx(440, abs=2)  # rested: one burst
    assert admitted(made, 40.0, 10.0, 20.0) == 200  # below the rate nothing is refused


@pytest.mark.parametrize("seed", range(20))
def test_no_window_admits_more_than_rate_and_burst(seed: int) -> None:
    rng = Random(seed)
    rate, burst_s = 1 + rng.random() * 50, rng.random() * 3
    bucket = Bucket(rate, burst_s, 0.0)
    now, times = 0.0, []
    for _ in range(3000):
        now += rng.expovariate(rng.choice((1.0, 100.0)))
        if bucket.take(now) == 0.0:
            times.append(now)
    capacity = max(1.0, rate * burst_s)
    for first in range(0, len(times), 7):
        for last in range(first, min(len(times), first + 200)):
            most = capacity + rate * (times[last] - times[first])
            assert last - first + 1 <= most + 1e-6


def test_a_clock_that_stands_still_or_goes_back_gives_nothing() -> None:
    bucket = Bucket(10.0, 1.0, 5.0)
    assert bucket.take(5.0) == 0.0
    for now in (5.0, 4.0, -1e9):
        assert bucket.take(now) > 0
    assert bucket.take(5.2) == 0.0


def test_a_clock_that_was_far_ahead_for_a_moment_keeps_nobody_out() -> None:
    bucket = Bucket(10.0, 0.1, 5.0)
    for now in (5.0, 1e9, 6.0):
        bucket.take(now)
    assert bucket.take(6.2) == 0.0


def test_the_rate_falls_to_the_floor_and_then_to_the_newcomers_share() -> None:
    made = quotas()
    for now, rate, standing in (
        (0.0, 40.0, "confirmed"),
        (HOLD_S - 0.1, 40.0, "confirmed"),
        (HOLD_S, 10.0, "floor"),
        (FORGET_HOLDS * HOLD_S - 1, 10.0, "floor"),
        ((FORGET_HOLDS + 1) * HOLD_S + 1, 2.0, "newcomer"),
    ):
        assert made.rate("t", now) == rate, now
        assert made.standing == standing
    made.confirm(1e6)
    assert made.rate("t", 1e6) == 40.0


def test_nothing_given_and_nothing_confirmed() -> None:
    made = quotas(directive=NONE)
    assert made.rate("t", 1e9) == 2.0
    made.direct(GIVEN, 1e9)  # from disk, or from a replica that knows as little
    assert made.rate("t", 1e9) == 10.0
    made.direct(Directive(number=2, quotas={"other": 5.0}), 1e9)
    made.confirm(1e9)
    assert made.rate("t", 1e9) == 2.0


def test_a_rate_above_the_limit_is_not_believed() -> None:
    made = quotas(world(30.0))
    assert made.rate("t", 0.0) == 30.0
    made.direct(Directive(number=2, quotas={"t": -5.0}), 1.0)
    with pytest.raises(OverLimit):
        for _ in range(100):
            made.admit("t", 50.0)
    made.direct(GIVEN, 50.0)
    made.admit("t", 50.1)  # nothing is owed


def test_tenants_come_and_go() -> None:
    made = quotas()
    made.admit("free", 0.0)
    made.admit("stranger", 0.0)
    assert list(made.asked) == ["t"]
    made.use(world(None), 1.0)
    assert made.asked == {}
    for _ in range(1000):
        made.admit("t", 1.0)
    made.use(world(100.0), 2.0)
    with pytest.raises(OverLimit):
        for _ in range(100):
            made.admit("t", 2.0)


def test_what_the_refused_are_told() -> None:
    made = quotas()
    waits = []
    made.admit("t", 0.0)
    for _ in range(50):
        with pytest.raises(OverLimit) as refused:
            made.admit("t", 0.0)
        waits.append(refused.value.retry_s)
    assert 0.025 <= min(waits) < max(waits) <= 0.05  # one token's time, and jitter
    told = respond.chat_error(refused.value)
    assert (told.status, told.code, told.type) == (429, "rate_limit_exceeded", "rate_limit_error")
    headers = dict(respond.headers(told, http1=True))
    assert headers["retry-after"] == "1"
    assert 25 <= int(headers["retry-after-ms"]) <= 50
    assert "connection" not in headers
    assert "100 requests per second" in told.message


def test_a_tenant_without_a_limit_costs_next_to_nothing() -> None:
    made = quotas()
    began = time.perf_counter()
    for _ in range(100_000):
        made.admit("free", 1.0)
    each_s = (time.perf_counter() - began) / 100_000
    assert each_s < 1e-6 * 3  # 0.1 microseconds on a quiet machine


def test_figures() -> None:
    made = quotas()
    made.admit("t", 0.0)
    with pytest.raises(OverLimit):
        made.admit("t", 0.0)
    found = {(s.name, *s.labels.values()): s.value for s in made.samples(0.0)}
    assert found["tradewind_edge_quota_rate", "t"] == 40.0
    assert found["tradewind_edge_quota_asked_total", "t"] == 2
    assert found["tradewind_edge_quota_refused_total", "t"] == 1
    assert found["tradewind_edge_quota_standing", "confirmed"] == 1


def test_figures_say_what_holds_now_although_nobody_asks() -> None:
    made = quotas()
    found = {(s.name, *s.labels.values()): s.value for s in made.samples(HOLD_S + 1.0)}
    assert found["tradewind_edge_quota_rate", "t"] == 10.0
    assert found["tradewind_edge_quota_standing", "floor"] == 1


async def test_an_edge_answers_429_in_openai_form() -> None:
    limited = edges.tenant("acme", edges.ACME, limit={"requests_per_s": 50})
    async with edges.running(edges.upstream(), edges.snapshot(limited)) as edge:
        replies = [await edges.post(edge, edges.ask()) for _ in range(4)]
        other = await edges.post(edge, edges.ask(), key=edges.EUROBANK)
        assert other.status_code == 200
        assert replies[0].status_code == 200
        refused = next(reply for reply in replies if reply.status_code == 429)
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert int(refused.headers["retry-after"]) >= 1
        given = Directive(number=1, quotas={"acme": 50.0}, floors={"acme": 25.0})
        edge.app.direct(given)
        edge.app.confirm()
        assert edge.app.quotas.asked["acme"] == 4
        assert edge.app.figures.replies[429] >= 1
