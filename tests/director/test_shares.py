"""The director's shares: from reports to what edges are told."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from control_plane.directives.observed import (
    ClassLoad,
    CoreReport,
    EdgeReport,
    Observed,
    RegionSeen,
)
from control_plane.directives.state import Drain, State, Verdict
from control_plane.director import shares
from control_plane.director.decide import decide
from tests.topology.worlds import base, document, edge, link
from topology.snapshot import Snapshot

ALL = "standard:dubai|frankfurt|singapore"
EU = "standard:frankfurt"
NOW = 1000.0


def world(*extra: dict[str, Any]) -> Snapshot:
    """Three regions of 100 tokens/s each, of which 85 are used; London is near Frankfurt, and
    Paris nearer."""
    paris = [edge("paris"), link("paris", "frankfurt", 9)]
    paris += [link("paris", "dubai", 130), link("paris", "singapore", 180)]
    return base(*paris, *extra)


def report(name: str, regions: dict[str, RegionSeen] | None = None, **demand: float) -> EdgeReport:
    """`demand`: `all` and `eu`, in tokens/s, served where they are sent without a director."""
    texts = {"all": ALL, "eu": EU}
    loads = {
        texts[cls]: ClassLoad(tokens / 10, tokens, 0.0, {"frankfurt": tokens})
        for cls, tokens in demand.items()
    }
    return EdgeReport(f"edge/{name}", name, NOW, loads, regions or {}, load_at_s=NOW)


def seen(*edges: EdgeReport, cores: tuple[CoreReport, ...] = ()) -> Observed:
    return Observed(NOW, {e.node: e for e in edges}, {c.node: c for c in cores})


def core(at: str, utilisation: float, tokens: float, **more: Any) -> CoreReport:
    return CoreReport(f"core/{at}", at, NOW, utilisation, tokens, **more)


def settle(snapshot: Snapshot, observed: Observed, state: State | None = None) -> shares.Spread:
    """What holds once everything has moved."""
    state = state or State()
    for _ in range(30):
        spread = shares.advance(snapshot, state, observed, NOW)
        state = msgspec.structs.replace(state, shares=spread.shares, shed=spread.shed)
    return spread


def test_where_all_have_room_nothing_is_said() -> None:
    spread = shares.advance(
        world(), State(), seen(report("london", all=40), report("paris", all=40)), NOW
    )
    assert (spread.shares, spread.shed, spread.notes) == ({}, {}, ())
    assert spread.outlook.flows == {ALL: {"frankfurt": 80.0}}
    assert spread.outlook.edges == 2
    assert spread.outlook.capacity == dict.fromkeys(("dubai", "frankfurt", "singapore"), 85.0)


def test_who_loses_least_goes_further_first() -> None:
    spread = settle(world(), seen(report("london", all=60), report("paris", all=60)))
    assert spread.shares.keys() == {"london"}  # Dubai is 105 ms more for it, 121 ms for Paris
    assert spread.shares["london"][ALL].keys() == {"frankfurt", "dubai"}
    load = 60 + 60 * spread.shares["london"][ALL]["frankfurt"]
    assert 85 - 1e-6 <= load <= 85 * 1.1 + 1e-6
    assert spread.notes == ("frankfurt is full: some go further",)
    assert spread.outlook.prices == {"frankfurt": pytest.approx(105.0)}


def test_those_who_may_go_nowhere_else_come_first() -> None:
    spread = settle(world(), seen(report("london", all=60, eu=80)))
    assert spread.shed == {}
    assert spread.shares["london"][ALL].get("frankfurt", 0.0) <= 0.25
    assert EU not in spread.shares["london"]


def test_what_fits_nowhere_is_shed_and_said() -> None:
    spread = settle(world(), seen(report("london", eu=170)))
    assert spread.shed == {"london": {EU: 0.5}}
    assert "no region has room for 50% of what standard tenants ask" in spread.notes


def test_a_region_that_is_down_gets_nothing() -> None:
    state = State(verdicts={"frankfurt": Verdict(False, NOW), "dubai": Verdict(True, NOW)})
    spread = shares.advance(world(), state, seen(report("london", all=80)), NOW)
    assert "frankfurt" not in spread.outlook.capacity
    # Dubai is next in London's own order: it need not be told.
    assert spread.shares == {}
    spread = settle(world(), seen(report("london", all=120)), state)
    assert spread.shares["london"][ALL].keys() == {"dubai", "singapore"}


@pytest.mark.parametrize("paced", [False, True])
def test_drains_are_heeded_as_far_as_they_have_come(paced: bool) -> None:
    drain = document(
        "Override", "f", region="frankfurt", action="drain", reason="x", percent=100.0,
        **({"over_s": 100.0} if paced else {}),
    )  # fmt: skip
    state = State(drains={"frankfurt": Drain("frankfurt", 40.0, 100.0, NOW)} if paced else {})
    tokens = 250 if paced else 120
    spread = settle(world(drain), seen(report("london", all=tokens)), state)
    told = spread.shares["london"][ALL]
    assert told.get("frankfurt", 0.0) <= (0.6 if paced else 0.0) + 1e-9
    assert told["dubai"] * tokens <= 85 * 1.1 + 1e-6


def test_measured_distances_outrank_declared_ones() -> None:
    views = {"singapore": RegionSeen(True, 20.0), "dubai": RegionSeen(True, 200.0)}
    spread = settle(world(), seen(report("london", views, all=120)))
    assert spread.shares["london"][ALL].keys() == {"frankfurt", "singapore"}


def test_workers_of_an_edge_count_together() -> None:
    one, two = report("london", all=60), report("london", all=60)
    two = msgspec.structs.replace(two, node="edge/london/1")
    spread = settle(world(), seen(one, two))
    assert spread.shares["london"][ALL]["frankfurt"] == pytest.approx(85 / 120, abs=0.1)
    assert spread.outlook.edges == 1


def test_requests_that_fail_are_demand_all_the_same() -> None:
    failing = EdgeReport(
        "edge/london", "london", NOW, {ALL: ClassLoad(12.0, 40.0, 8.0, {"frankfurt": 40.0})}
    )
    spread = settle(world(), seen(failing))
    assert "london" in spread.shares  # 120 tokens/s are asked for


def test_a_region_that_is_fuller_than_it_should_be_is_given_less() -> None:
    full = core("frankfurt", utilisation=1.0, tokens=50.0)
    spread = settle(world(), seen(report("london", all=50), cores=(full,)))
    assert spread.outlook.capacity["frankfurt"] == pytest.approx(42.5)
    assert spread.outlook.utilisation == {"frankfurt": 1.0}
    lightly = core("frankfurt", utilisation=0.2, tokens=5.0)
    spread = settle(world(), seen(report("london", all=5), cores=(lightly,)))
    assert spread.outlook.capacity["frankfurt"] == 85.0


def test_cores_that_drain_are_no_capacity_and_others_traffic_is_not_ours() -> None:
    cores = (
        core("frankfurt", 0.2, 10.0),
        msgspec.structs.replace(
            core("frankfurt", 0.0, 0.0, draining=True), node="core/frankfurt.2"
        ),
        core("dubai", 0.5, 50.0),
    )
    capacity = settle(world(), seen(report("london", all=10), cores=cores)).outlook.capacity
    assert capacity["frankfurt"] == pytest.approx(42.5)
    assert capacity["dubai"] == pytest.approx(35.0)


def test_whoever_is_silent_keeps_what_it_was_told_and_whoever_is_idle_does_not() -> None:
    held = State(shares={"london": {ALL: {"dubai": 1.0}, "standard:atlantis": {"atlantis": 1.0}}})
    assert shares.advance(world(), held, seen(), NOW).shares == {"london": {ALL: {"dubai": 1.0}}}
    told = {"london": {ALL: {"dubai": 1.0}}}
    heartbeat = msgspec.structs.replace(report("london"), load_at_s=0.0)
    assert shares.advance(world(), held, seen(heartbeat), NOW).shares == told
    assert shares.advance(world(), held, seen(report("london")), NOW).shares == {}


def test_edges_and_classes_that_the_configuration_does_not_know_are_no_demand() -> None:
    strange = EdgeReport("edge/mars", "mars", NOW, {ALL: ClassLoad(1.0, 500.0)})
    proxy = EdgeReport("proxy/envoy", "", NOW, {"small": ClassLoad(1.0, 500.0, 0.0, {"": 1.0})})
    behind = report("london")
    behind = msgspec.structs.replace(behind, demand={"vip:atlantis": ClassLoad(1.0, 500.0)})
    spread = shares.advance(world(), State(), seen(strange, proxy, behind), NOW)
    assert (spread.shares, spread.shed) == ({}, {})
    assert spread.outlook.flows.keys() == {ALL}


def test_errors_and_first_tokens_by_region() -> None:
    views = {
        "frankfurt": RegionSeen(True, 18.0, 10.0, 1.0, 118.0),
        "dubai": RegionSeen(True, 123.0),
    }
    other = {"frankfurt": RegionSeen(True, 10.0, 30.0, 0.0, 210.0)}
    found = shares.advance(
        world(), State(), seen(report("london", views), report("paris", other)), NOW
    ).outlook
    assert found.error_rate == {"frankfurt": pytest.approx(1 / 40)}
    assert found.first_token_ms == {"frankfurt": pytest.approx((10 * 100 + 30 * 200) / 40)}


def test_a_world_without_regions() -> None:
    assert (
        shares.advance(Snapshot.empty(), State(), seen(report("london", all=5)), NOW).shares == {}
    )


def test_a_solver_that_fails_leaves_the_shares_and_stops_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    observed = seen(report("london", all=60), report("paris", all=60))
    held = State(shares=settle(world(), observed).shares, verdicts={"dubai": Verdict(True, NOW)})
    assert held.shares

    def fail(*_: Any) -> Any:
        raise ArithmeticError("HiGHS: no optimum")

    monkeypatch.setattr(shares, "assign", fail)
    decided = decide(world(), held, observed, {"dubai": True}, NOW + 1)
    assert decided.state.shares == held.shares
    assert decided.state.verdicts["dubai"].up
    assert decided.state.notes == ("shares stay as they are: HiGHS: no optimum",)
    assert decided.outlook.flows[ALL] == {"frankfurt": 120.0}
