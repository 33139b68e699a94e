"""What an edge counts for its load reports, by what becomes of a request."""

from __future__ import annotations

from tests.edge_node.worlds import (
    EUROBANK,
    WORDS,
    Edge,
    answering,
    ask,
    dying,
    post,
    refusing,
    running,
    silent,
    snapshot,
    upstream,
)
from tests.topology.worlds import document
from topology.load import ClassCount

VIP = "vip:dubai|frankfurt|singapore"
EU = "standard:frankfurt"


def counted(edge: Edge, cls: str = VIP) -> ClassCount:
    return edge.app.figures.load.take()[cls]


async def test_an_answer_counts_where_it_came_from() -> None:
    async with running(upstream(frankfurt=answering("frankfurt", first_s=0.05))) as edge:
        for n in range(3):
            assert (await post(edge, ask(seed=n))).status_code == 200
        count = counted(edge)
    at = count.regions["frankfurt"]
    assert (count.lost, list(count.regions)) == (0, ["frankfurt"])
    assert (at.issued, at.ok, at.failed, at.tokens) == (3, 3, 0, 3 * len(WORDS))
    assert at.first_tokens == 3
    assert 0.15 <= at.first_token_s < 3.0


async def test_what_the_cache_answers_is_no_load() -> None:
    async with running(upstream()) as edge:
        for _ in range(3):
            assert (await post(edge, ask(temperature=0))).status_code == 200
        assert counted(edge).regions["frankfurt"].issued == 1


async def test_a_failed_attempt_counts_there_and_the_answer_elsewhere() -> None:
    async with running(upstream(frankfurt=dying("frankfurt", after=3))) as edge:
        assert (await post(edge, ask())).status_code == 200
        count = counted(edge)
    frankfurt, dubai = count.regions["frankfurt"], count.regions["dubai"]
    assert (frankfurt.issued, frankfurt.ok, frankfurt.failed) == (1, 0, 1)
    assert (dubai.issued, dubai.ok, dubai.failed) == (1, 1, 0)
    assert count.lost == 0


async def test_a_request_that_nobody_serves_is_lost_once() -> None:
    regions = {
        n: refusing(n, "overloaded", 503, retryable=True)
        for n in ("frankfurt", "dubai", "singapore")
    }
    async with running(upstream(**regions)) as edge:
        assert (await post(edge, ask())).status_code == 503
        count = counted(edge)
    assert count.lost == 1
    assert sum(at.failed for at in count.regions.values()) == 3


async def test_a_request_with_nowhere_to_go_is_lost() -> None:
    regions = upstream()
    regions.cut("frankfurt")
    async with running(regions) as edge:
        assert (await post(edge, ask(), key=EUROBANK)).status_code == 503
        assert counted(edge, EU).lost == 1


async def test_a_deadline_that_passes_is_a_loss_and_a_clients_mistake_is_none() -> None:
    wrong = refusing("dubai", "invalid", 400, retryable=False)
    dubai = document("Route", "z", models=["*"], tenants=["acme"], regions=["dubai"])
    async with running(upstream(dubai=wrong), snapshot(dubai)) as edge:
        assert (await post(edge, ask())).status_code == 400
        count = counted(edge, "vip:dubai")
        assert (count.lost, count.regions["dubai"].failed) == (0, 0)
    async with running(upstream(frankfurt=silent("frankfurt"))) as edge:
        reply = await post(edge, ask(), x_tradewind_deadline_ms="200")
        assert reply.status_code == 504
        assert counted(edge).lost == 1
