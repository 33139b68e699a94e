"""Region choice: decided once, and again when the world changes."""

from __future__ import annotations

from random import Random

from edge_node.forward.choice import Choice
from runtime.clock import ManualClock
from tests.edge_node.worlds import snapshot, upstream
from tests.topology.worlds import document
from topology.directive import Directive


def _first(choice: Choice) -> str:
    return choice.decide("acme", "small").candidates[0].region


def test_a_decision_is_kept_until_the_views_change() -> None:
    regions = upstream()
    choice = Choice("london", regions.views, ManualClock(), Random(1))
    choice.use(snapshot())
    first = choice.decide("acme", "small")
    assert choice.decide("acme", "small") is first
    regions.cut("frankfurt")
    assert _first(choice) == "dubai"
    regions.cut("frankfurt", reachable=True)
    assert _first(choice) == "frankfurt"


def test_a_snapshot_takes_effect_at_once() -> None:
    choice = Choice("london", upstream().views, ManualClock(), Random(1))
    choice.use(snapshot())
    assert _first(choice) == "frankfurt"
    choice.use(snapshot(document("Override", "d", region="frankfurt", action="drain", reason="x")))
    assert _first(choice) == "dubai"


def test_an_override_expires_without_a_new_snapshot() -> None:
    clock = ManualClock(wall=1000.0)
    choice = Choice("london", upstream().views, clock, Random(1))
    choice.use(
        snapshot(
            document(
                "Override",
                "d",
                region="frankfurt",
                action="drain",
                reason="x",
                expires_s=1010.0,
            )
        )
    )
    assert _first(choice) == "dubai"
    clock.advance(11.0)
    assert _first(choice) == "frankfurt"


def test_a_partial_drain_draws_for_each_request() -> None:
    choice = Choice("london", upstream().views, ManualClock(), Random(1))
    drain = document("Override", "d", region="frankfurt", action="drain", reason="x", percent=30.0)
    choice.use(snapshot(drain))
    seen = [_first(choice) for _ in range(2000)]
    assert set(seen) == {"frankfurt", "dubai"}
    assert 0.25 < seen.count("dubai") / len(seen) < 0.35


def test_unknown_models_take_no_room() -> None:
    choice = Choice("london", upstream().views, ManualClock(), Random(1))
    choice.use(snapshot())
    for n in range(100):
        assert choice.decide("acme", f"nothing-{n}").refusal == "unknown_model"
    assert not choice._kept


def _shares(**shares: float) -> Directive:
    return Directive(shares={"vip:dubai|frankfurt|singapore": shares})


def test_a_directive_takes_effect_at_once_and_draws_by_share() -> None:
    choice = Choice("london", upstream().views, ManualClock(), Random(1))
    choice.use(snapshot())
    assert _first(choice) == "frankfurt"
    choice.use_directive(_shares(frankfurt=0.7, singapore=0.3))
    seen = [_first(choice) for _ in range(2000)]
    assert set(seen) == {"frankfurt", "singapore"}
    assert 0.26 < seen.count("singapore") / len(seen) < 0.34
    choice.use_directive(Directive(down=("frankfurt",)))
    assert _first(choice) == "dubai"


def test_shares_yield_to_what_this_edge_sees() -> None:
    regions = upstream()
    choice = Choice("london", regions.views, ManualClock(), Random(1))
    choice.use(snapshot())
    choice.use_directive(_shares(singapore=1.0))
    assert _first(choice) == "singapore"
    regions.cut("singapore")
    assert _first(choice) == "frankfurt"


def test_plans_are_kept_while_requests_draw_from_them() -> None:
    choice = Choice("london", upstream().views, ManualClock(), Random(1))
    drain = document("Override", "d", region="frankfurt", action="drain", reason="x", percent=30.0)
    choice.use(snapshot(drain))
    choice.use_directive(_shares(frankfurt=0.5, singapore=0.5))
    decisions = {id(choice.decide("acme", "small")) for _ in range(500)}
    assert len(decisions) <= 4  # as many as there are, each made once
