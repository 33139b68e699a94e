"""Region choice where there are several ways to a region: residency, cost and drains of relays."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.topology.test_relays import BETWEEN
from tests.topology.worlds import base, document
from topology.paths import PathView, name_of
from topology.routing import Candidate, Decision, RegionView, decide
from topology.snapshot import Snapshot

REGIONS = ("singapore", "frankfurt", "dubai")
JURISDICTION = {"singapore": "SG", "frankfurt": "EU", "dubai": "AE"}


def world(*extra: dict[str, Any]) -> Snapshot:
    return base(*BETWEEN, document("Tenant", "gulf", residency=["SG", "AE"]), *extra)


def ask(snapshot: Snapshot, tenant: str = "acme", **views: RegionView) -> Decision:
    return decide(snapshot, "london", tenant, "small", views, now_s=1000.0)


def of(decision: Decision, region: str) -> Candidate:
    return next(c for c in decision.candidates if c.region == region)


def why_not(decision: Decision, region: str) -> str:
    return next(e.why for e in decision.excluded if e.region == region and e.rule == "unreachable")


def seen(*paths: PathView, queue_ms: float = 0.0, reachable: bool = True) -> RegionView:
    first = next((p for p in paths if p.up), None)
    return RegionView(reachable and first is not None, first and first.rtt_ms, paths, queue_ms)


STRAIGHT = PathView("", True, 173.0)
VIA_DUBAI = PathView("dubai", True, 140.0, 5.0)
VIA_FRANKFURT = PathView("frankfurt", True, 120.0, 5.0)


def down(path: PathView) -> PathView:
    return PathView(path.relay, False, path.rtt_ms, path.extra_ms)


def test_the_first_that_is_up_and_the_others_in_their_order() -> None:
    found = of(ask(world(), singapore=seen(VIA_FRANKFURT, STRAIGHT, VIA_DUBAI)), "singapore")
    assert (found.relay, found.path, found.rtt_ms) == ("frankfurt", "via frankfurt", 120.0)
    assert found.others == ("", "dubai")
    assert found.why == "measured 120 ms away via frankfurt"
    found = of(
        ask(world(), singapore=seen(down(VIA_FRANKFURT), STRAIGHT, down(VIA_DUBAI))), "singapore"
    )
    assert (found.relay, found.path, found.others) == ("", "direct", ())
    assert found.why == "measured 173 ms away"


def test_a_relay_outside_the_tenants_residency_is_passed_over() -> None:
    views = {"singapore": seen(VIA_FRANKFURT, VIA_DUBAI, STRAIGHT)}
    found = of(ask(world(), "gulf", **views), "singapore")
    assert (found.relay, found.others) == ("dubai", ("",))
    assert found.why == (
        "measured 140 ms away via dubai; "
        "via frankfurt is better, and outside the tenant's residency"
    )
    found = of(ask(world(document("Tenant", "sg", residency=["SG"])), "sg", **views), "singapore")
    assert (found.relay, found.others) == ("", ())


def test_only_through_a_relay_outside_the_residency_is_not_reachable() -> None:
    decision = ask(world(), "gulf", singapore=seen(VIA_FRANKFURT, down(STRAIGHT)))
    assert why_not(decision, "singapore") == (
        "this edge reaches it only through a relay outside the tenant's residency "
        "(frankfurt, which lies in EU); the tenant's data stays in SG, AE"
    )
    assert [c.region for c in decision.candidates] == ["dubai"]
    decision = ask(
        world(document("Tenant", "sg", residency=["SG"])), "sg",
        singapore=seen(VIA_FRANKFURT, VIA_DUBAI),
    )  # fmt: skip
    assert decision.refusal == "no_region"
    # A relay that the snapshot does not know any more lies nowhere.
    decision = ask(world(), "gulf", singapore=seen(PathView("gone", True, 1.0)))
    assert "(gone)" in why_not(decision, "singapore")


def test_dead_and_distrusted_regions_say_so() -> None:
    decision = ask(world(), singapore=seen(down(STRAIGHT), down(VIA_DUBAI)))
    assert why_not(decision, "singapore").startswith("this edge has no live path to it")
    decision = ask(world(), singapore=seen(STRAIGHT, reachable=False))
    assert "does not serve" in why_not(decision, "singapore")


def test_batch_requests_take_the_cheapest_way() -> None:
    def priced(source: str, target: str, rtt_ms: float, cost: float) -> dict[str, Any]:
        kind = "EdgeSite" if source == "london" else "Region"
        return document(
            "Link", f"{source}-{target}", source=f"{kind}/{source}", target=f"Region/{target}",
            rtt_ms=rtt_ms, cost_per_gib=cost,
        )  # fmt: skip

    prices = [
        priced("london", "singapore", 173, 0.09),
        priced("london", "frankfurt", 18, 0.02),
        priced("london", "dubai", 123, 0.03),
        priced("frankfurt", "singapore", 161, 0.04),
        priced("dubai", "singapore", 90, 0.08),
        document("Tenant", "nightly", tier="batch"),
    ]
    views = {"singapore": seen(VIA_DUBAI, STRAIGHT, VIA_FRANKFURT)}
    found = of(ask(world(*prices), "nightly", **views), "singapore")
    assert (found.relay, found.others) == ("frankfurt", ("", "dubai")), "0.06, 0.09, 0.11"
    assert of(ask(world(*prices), "acme", **views), "singapore").relay == "dubai", "the fastest"
    free = world(document("Tenant", "nightly", tier="batch"))
    assert of(ask(free, "nightly", **views), "singapore").relay == "dubai", "then by the order"


def test_a_drained_region_relays_only_where_nobody_else_can() -> None:
    drained = document("Override", "frankfurt", region="frankfurt", action="drain", reason="x")
    views = {"singapore": seen(VIA_FRANKFURT, STRAIGHT)}
    found = of(ask(world(drained), **views), "singapore")
    assert (found.relay, found.others) == ("", ("frankfurt",))
    assert found.why.endswith("; via frankfurt is better, and frankfurt is drained")
    found = of(ask(world(drained), singapore=seen(VIA_FRANKFURT, down(STRAIGHT))), "singapore")
    assert found.relay == "frankfurt"
    partly = document(
        "Override", "frankfurt", region="frankfurt", action="drain", reason="x", percent=60
    )
    assert of(ask(world(partly), **views), "singapore").relay == "frankfurt"


def test_regions_go_by_the_way_there_its_losses_and_the_queue_at_its_end() -> None:
    near = {"frankfurt": seen(PathView("", True, 18.0)), "dubai": seen(PathView("", True, 40.0))}
    order = [c.region for c in ask(world(), **near).candidates]
    assert order == ["frankfurt", "dubai", "singapore"]
    lossy = near | {"frankfurt": seen(PathView("", True, 18.0, 60.0))}
    assert ask(world(), **lossy).candidates[0].region == "dubai"
    full = near | {"frankfurt": seen(PathView("", True, 18.0), queue_ms=300.0)}
    decision = ask(world(), **full)
    assert [c.region for c in decision.candidates] == ["dubai", "singapore", "frankfurt"]
    assert decision.candidates[2].why == "measured 18 ms away; requests wait 300 ms there"
    assert decision.candidates[2].rtt_ms == 18.0


def test_what_was_not_measured_goes_by_what_links_declare() -> None:
    views = {"singapore": seen(PathView("dubai", True), PathView("", True))}
    found = of(ask(world(), **views), "singapore")
    assert found.rtt_ms == 213.0
    assert found.why == "expected 213 ms away via dubai"
    views = {"dubai": seen(PathView("singapore", True))}
    assert "no link declares" in of(ask(world(), **views), "dubai").why


paths = st.lists(
    st.builds(
        PathView,
        st.sampled_from(["", *REGIONS, "gone"]),
        st.booleans(),
        st.none() | st.floats(0.1, 500),
        st.floats(0, 100),
    ),
    max_size=4,
    unique_by=lambda path: path.relay,
)


@given(
    st.dictionaries(st.sampled_from(REGIONS), paths),
    st.sampled_from(["acme", "eurobank", "gulf"]),
    st.sampled_from([None, *REGIONS]),
)
def test_no_request_ever_leaves_its_residency(
    ways: dict[str, list[PathView]], tenant: str, drained: str | None
) -> None:
    extra = []
    if drained is not None:
        extra = [document("Override", "d", region=drained, action="drain", reason="x")]
    snapshot = world(*extra)
    views = {region: seen(*there) for region, there in ways.items()}
    decision = ask(snapshot, tenant, **views)
    named = [c.region for c in decision.candidates] + [e.region for e in decision.excluded]
    assert sorted(named) == sorted(REGIONS)
    residency = snapshot.tenants[tenant].residency
    for candidate in decision.candidates:
        assert candidate.path == name_of(candidate.relay)
        ups = [path.relay for path in ways.get(candidate.region, []) if path.up]
        for relay in (candidate.relay, *candidate.others):
            assert relay in ups or not ways.get(candidate.region)
            assert not relay or residency is None or JURISDICTION.get(relay) in residency
        assert candidate.relay not in candidate.others
    for exclusion in decision.excluded:
        if exclusion.rule == "unreachable":
            assert exclusion.why
