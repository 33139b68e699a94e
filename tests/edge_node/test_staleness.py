"""Past the bound on staleness: not ready, or refusing, and nothing else changes."""

from __future__ import annotations

import httpx
import pytest

from edge_node.errors import ConfigurationStale
from edge_node.staleness import NEVER, Staleness
from tests.edge_node import worlds as edges
from tests.topology import worlds
from topology.policy import StalenessPolicy

LEAVE = StalenessPolicy(limit_s=60.0)
REFUSE = StalenessPolicy(limit_s=60.0, action="refuse")


def test_without_a_bound_nothing_is_ever_stale() -> None:
    stale = Staleness()
    stale.look(StalenessPolicy(), NEVER, 1e9)
    stale.check()
    assert stale.reason == ""


@pytest.mark.parametrize("policy", [LEAVE, REFUSE])
def test_the_bound(policy: StalenessPolicy) -> None:
    stale = Staleness()
    stale.look(policy, 1000.0, 1060.0)
    assert stale.reason == ""
    stale.look(policy, 1000.0, 1060.5)
    assert "for 60 s" in stale.reason
    assert "limit is 60 s" in stale.reason
    if policy is REFUSE:
        with pytest.raises(ConfigurationStale, match="confirmed"):
            stale.check()
    else:
        stale.check()
    stale.look(policy, 1061.0, 1061.0)
    stale.check()
    assert stale.reason == ""


def test_never_confirmed_is_older_than_any_bound() -> None:
    stale = Staleness()
    stale.look(REFUSE, NEVER, 5.0)
    assert "since it started" in stale.reason


def test_a_policy_that_changes_counts_at_once() -> None:
    stale = Staleness()
    stale.look(REFUSE, 0.0, 100.0)
    stale.look(LEAVE, 0.0, 100.0)
    stale.check()
    assert stale.reason
    stale.look(StalenessPolicy(limit_s=500.0), 0.0, 100.0)
    assert stale.reason == ""


def test_figures() -> None:
    stale = Staleness()
    stale.look(LEAVE, 0.0, 10.0)
    for now in (100.0, 101.0):
        stale.look(LEAVE, 0.0, now)
    found = {sample.name: sample.value for sample in stale.samples()}
    assert found["tradewind_edge_configuration_age_seconds"] == 101.0
    assert found["tradewind_edge_configuration_stale"] == 1
    assert found["tradewind_edge_configuration_stale_total"] == 1


async def get(edge: edges.Edge, path: str) -> httpx.Response:
    async with httpx.AsyncClient() as client:
        return await client.get(edge.url + path)


async def test_what_clients_and_geodns_see() -> None:
    async with edges.running(edges.upstream()) as edge:
        staleness = edge.app.serving.staleness
        staleness.look(LEAVE, 0.0, 100.0)
        ready = await get(edge, "/readyz")
        assert ready.status_code == 503
        assert "no control plane has confirmed" in ready.json()["reasons"][0]
        assert (await edges.post(edge, edges.ask())).status_code == 200  # whoever still comes
        staleness.look(REFUSE, 0.0, 100.0)
        refused = await edges.post(edge, edges.ask())
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "configuration_stale"
        assert int(refused.headers["retry-after"]) >= 1
        assert (await get(edge, "/healthz")).status_code == 200
        staleness.look(REFUSE, 100.0, 100.0)
        assert (await edges.post(edge, edges.ask())).status_code == 200
        assert (await get(edge, "/readyz")).status_code == 200


def test_the_policy_document_is_checked() -> None:
    good = worlds.base(worlds.document("Policy", "default", staleness={"limit_s": 300}))
    assert good.policy.staleness.limit_s == 300
