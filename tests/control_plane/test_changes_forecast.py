"""The forecast: where load goes, by cases and against what must hold for any change."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.changes import safety
from control_plane.changes.errors import ChangeRefused
from control_plane.changes.forecast import Forecast, forecast
from control_plane.changes.plan import Wanted
from control_plane.directives.state import Drain, Outlook, State, Verdict
from control_plane.store.memory import MemoryStore
from tests.control_plane.bench import NOW_S, Bench
from tests.control_plane.mesh import region, resource, world
from topology.demand import DemandClass, demand_class
from topology.resources import Key, Resource
from topology.snapshot import Snapshot

BOTH = "frankfurt|singapore"


def override(name: str, percent: float = 100, **spec: object) -> Resource:
    rest = {"region": name, "action": "drain", "reason": "x", "percent": percent}
    return resource("Override", name, **(rest | spec))


def seen(flows: dict[str, dict[str, float]]) -> Outlook:
    return Outlook(at_s=NOW_S - 5, flows=flows, edges=2)


def loads(found: Forecast) -> dict[str, float]:
    return {load.region: round(load.after, 6) for load in found.regions}


def snapshot(*more: Resource) -> Snapshot:
    held = {r.key: r for r in [*world(), *more]}
    return Snapshot.build(1, held.values())


VIP = f"vip:{BOTH}"
STANDARD = f"standard:{BOTH}"
EURO = "standard:frankfurt"
FLOWS = {VIP: {"singapore": 30.0, "frankfurt": 10.0}, EURO: {"frankfurt": 40.0}}


@pytest.mark.parametrize(
    ("puts", "expected", "unserved"),
    [
        ([], {"singapore": 30, "frankfurt": 50}, 0),
        # What singapore serves goes to the only other region that may.
        ([override("singapore")], {"singapore": 0, "frankfurt": 80}, 0),
        ([override("singapore", 50)], {"singapore": 15, "frankfurt": 65}, 0),
        # Eurobank may go nowhere else; the others may.
        ([override("frankfurt")], {"singapore": 40, "frankfurt": 0}, 40),
        ([override("frankfurt", 50)], {"singapore": 35, "frankfurt": 25}, 20),
        ([override("frankfurt", 100, over_s=60.0)], {"singapore": 40, "frankfurt": 0}, 40),
        ([override("frankfurt", expires_s=NOW_S - 1)], {"singapore": 30, "frankfurt": 50}, 0),
        # A third region shares what singapore loses by the room they have: 50 and 250.
        (
            [
                region("dubai", "AE", capacity_tokens_per_s=250),
                resource("Model", "smol", regions=["frankfurt", "dubai"], context_tokens=2048),
                resource(
                    "Route", "all", models=["*"], tenants=["*"], regions=["frankfurt", "dubai"]
                ),
            ],
            {"singapore": 0, "frankfurt": 55, "dubai": 25},
            0,
        ),
        # A route to one region alone takes the rest along.
        (
            [resource("Route", "all", models=["*"], tenants=["*"], regions=["frankfurt"])],
            {"singapore": 0, "frankfurt": 80},
            0,
        ),
        # A tenant that goes takes its load with it.
        ([resource("Tenant", "acme", tier="batch")], {"singapore": 30, "frankfurt": 50}, 0),
        (
            [resource("Tenant", "acme", tier="vip", residency=["EU"])],
            {"singapore": 0, "frankfurt": 80},
            0,
        ),
        (
            [resource("Tenant", "acme", tier="vip", residency=["AE"])],
            {"singapore": 0, "frankfurt": 40},
            40,
        ),
    ],
)
def test_where_load_goes(puts: list[Resource], expected: dict[str, float], unserved: float) -> None:
    before = snapshot()
    found = forecast(seen(FLOWS), State(), before, before.changed(2, puts), NOW_S)
    assert found.unknown == ""
    assert loads(found) == {name: pytest.approx(load) for name, load in expected.items()}
    assert found.unserved == pytest.approx(unserved)
    assert {load.region: load.now for load in found.regions if load.now} == {
        "singapore": 30,
        "frankfurt": 50,
    }


def test_a_drain_that_goes_on_moves_only_what_is_left() -> None:
    """Half is away already: of what is measured, half leaves when 75% are to be away."""
    before = snapshot(override("singapore", 50))
    flows = seen({VIP: {"singapore": 20.0, "frankfurt": 20.0}})
    found = forecast(flows, State(), before, before.changed(2, [override("singapore", 75)]), NOW_S)
    assert loads(found) == {"frankfurt": 30.0, "singapore": 10.0}


def test_a_paced_drain_stands_where_the_director_says() -> None:
    paced = override("singapore", 100, over_s=600.0)
    before = snapshot(paced)
    told = State(
        drains={"singapore": Drain(region="singapore", percent=50.0, target=100.0, step_at_s=0.0)}
    )
    flows = seen({VIP: {"singapore": 20.0, "frankfurt": 20.0}})
    after = before.changed(2, [override("singapore", 75)])
    assert loads(forecast(flows, told, before, after, NOW_S))["singapore"] == 10.0
    # What it comes to by itself is no fault of a change elsewhere.
    other = before.changed(2, [resource("Tenant", "new")])
    [frankfurt, singapore] = forecast(flows, told, before, other, NOW_S).regions
    assert (singapore.now, singapore.baseline, singapore.after) == (20.0, 0.0, 0.0)
    assert not frankfurt.overloads


def test_a_region_that_is_down_receives_nothing() -> None:
    third = region("dubai", "AE", capacity_tokens_per_s=1000)
    everywhere = ["singapore", "frankfurt", "dubai"]
    model = resource("Model", "smol", regions=everywhere, context_tokens=2048)
    route = resource("Route", "all", models=["*"], tenants=["*"], regions=everywhere)
    before = snapshot(third, model, route)
    told = State(verdicts={"dubai": Verdict(up=False, since_s=0.0)})
    flows = seen({"vip:dubai|frankfurt|singapore": {"singapore": 30.0}})
    found = forecast(flows, told, before, before.changed(2, [override("singapore")]), NOW_S)
    assert loads(found) == {"dubai": 0.0, "frankfurt": 30.0, "singapore": 0.0}


def test_an_ordered_class_fills_one_region_after_another() -> None:
    third = region("dubai", "AE", capacity_tokens_per_s=1000)
    everywhere = ["singapore", "frankfurt", "dubai"]
    model = resource("Model", "smol", regions=everywhere, context_tokens=2048)
    route = resource(
        "Route", "all", models=["*"], tenants=["*"], regions=everywhere, prefer="ordered"
    )
    before = snapshot(third, model, route)
    flows = seen({"vip:singapore>frankfurt>dubai": {"singapore": 130.0}})
    found = forecast(flows, State(), before, before.changed(2, [override("singapore")]), NOW_S)
    assert loads(found) == {"dubai": 30.0, "frankfurt": 100.0, "singapore": 0.0}


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (Outlook(), "no load has been reported"),
        (Outlook(at_s=NOW_S), "no load has been reported"),
        (Outlook(at_s=NOW_S - 61, flows=FLOWS), "61 s old"),
        (Outlook(at_s=NOW_S + 61, flows=FLOWS), "in the future"),
    ],
)
def test_an_old_outlook_says_nothing(told: Outlook, why: str) -> None:
    before = snapshot()
    found = forecast(told, State(), before, before.changed(2, [override("singapore")]), NOW_S)
    assert why in found.unknown
    assert safety.over_capacity(found) == ()
    assert [load.capacity for load in found.regions] == [100.0, 100.0]


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with Bench(MemoryStore()) as made:
        await made.apply(*world())
        yield made


async def test_a_change_that_overloads_a_region_is_refused_by_name(bench: Bench) -> None:
    bench.outlook = seen({VIP: {"singapore": 70.0, "frankfurt": 50.0}})
    wanted = Wanted(puts=(override("singapore"),))
    plan = await bench.changes.plan(wanted)
    assert loads(plan.forecast) == {"frankfurt": 120.0, "singapore": 0.0}
    with pytest.raises(ChangeRefused, match="frankfurt would get 120 of 100") as refused:
        await bench.changes.apply(wanted, "o/a")
    assert "--force-capacity" in str(refused.value)
    done = await bench.changes.apply(Wanted(puts=wanted.puts, force=("capacity",)), "o/a")
    assert [refusal.rule for refusal in done.plan.forced] == ["capacity"]


async def test_what_is_too_full_already_stops_no_change_that_makes_it_no_worse(
    bench: Bench,
) -> None:
    bench.outlook = seen({VIP: {"singapore": 120.0, "frankfurt": 50.0}})
    await bench.apply(resource("Tenant", "new"))
    await bench.apply(region("singapore", capacity_tokens_per_s=110))  # better, and too little
    with pytest.raises(ChangeRefused, match="singapore would get 120 of 105"):
        await bench.apply(region("singapore", capacity_tokens_per_s=105))
    await bench.apply(override("singapore", 10))  # relieves it


async def test_without_a_forecast_there_is_a_warning_and_no_refusal(bench: Bench) -> None:
    done = await bench.changes.apply(Wanted(puts=(override("singapore"),)), "o/a")
    assert done.plan.warnings == ("no forecast of the load per region: no load has been reported",)
    quiet = await bench.changes.plan(Wanted(puts=(resource("Tenant", "new", api_keys=()),)))
    assert not [w for w in quiet.warnings if "forecast" in w]


async def test_cores_that_report_themselves_full_are_believed_with_a_warning(bench: Bench) -> None:
    bench.outlook = Outlook(
        at_s=NOW_S,
        flows={VIP: {"singapore": 30.0, "frankfurt": 30.0}},
        utilisation={"singapore": 0.2, "frankfurt": 0.8},
        edges=2,
    )
    plan = await bench.changes.plan(Wanted(puts=(override("singapore"),)))
    assert plan.refusals == ()
    assert plan.warnings == (
        "frankfurt would be 160% full by what its cores report now (80% at 30 tokens/s): "
        "is its declared capacity right?",
    )
    assert (await bench.changes.plan(Wanted(puts=(override("frankfurt", 50),)))).warnings == ()


# For any change, whatever it is:

REGIONS = ("a", "b", "c", "d")
NAMES = st.lists(st.sampled_from(REGIONS), min_size=1, max_size=4, unique=True)


@st.composite
def worlds(draw: st.DrawFn) -> Snapshot:
    made = [
        region(
            name,
            draw(st.sampled_from(["SG", "EU"])),
            capacity_tokens_per_s=draw(st.integers(1, 99)),
        )
        for name in REGIONS
    ]
    for number in range(draw(st.integers(1, 3))):
        model = draw(NAMES)
        made.append(resource("Model", f"m{number}", regions=model, context_tokens=1))
    for number in range(draw(st.integers(1, 4))):
        tier = draw(st.sampled_from(["vip", "standard", "batch"]))
        more = {"residency": ["EU"]} if draw(st.booleans()) else {}
        made.append(resource("Tenant", f"t{number}", tier=tier, **more))
    prefer = draw(st.sampled_from(["latency", "ordered"]))
    made.append(
        resource("Route", "r", models=["*"], tenants=["*"], regions=draw(NAMES), prefer=prefer)
    )
    for name in REGIONS:
        if draw(st.booleans()):
            made.append(override(name, draw(st.sampled_from([0, 30, 100]))))
    return Snapshot.build(1, made)


def classes(snapshot: Snapshot) -> list[DemandClass]:
    found = (demand_class(snapshot, t, m) for t in snapshot.tenants for m in snapshot.models)
    return sorted({cls for cls in found if cls is not None})


@settings(max_examples=150, deadline=None)
@given(worlds(), worlds(), st.data())
def test_no_load_is_made_or_lost_and_none_goes_where_it_may_not(
    before: Snapshot, after: Snapshot, data: st.DataObject
) -> None:
    tokens = st.integers(0, 50).map(float)
    flows = {str(c): {r: data.draw(tokens) for r in c.regions} for c in classes(before)}
    found = forecast(seen(flows), State(), before, after, NOW_S)
    baseline = sum(load.baseline for load in found.regions)
    placed = sum(load.after for load in found.regions)
    assert found.unserved == pytest.approx(max(0.0, baseline - placed))
    assert placed <= sum(sum(by_region.values()) for by_region in flows.values()) + 1e-6
    closed = {o.region for o in after.overrides.values() if o.percent == 100}
    served = {name for cls in classes(after) for name in cls.regions}
    for load in found.regions:
        assert load.after >= 0.0
        assert load.after < 1e-9 or load.region in served - closed


@settings(max_examples=60, deadline=None)
@given(worlds())
def test_a_change_of_something_else_changes_no_load(before: Snapshot) -> None:
    flows = {str(cls): {cls.regions[0]: 10.0} for cls in classes(before)}
    after = before.changed(2, [resource("Tenant", "another")])
    found = forecast(seen(flows), State(), before, after, NOW_S)
    for load in found.regions:
        assert load.after == pytest.approx(load.baseline)
        assert not load.overloads
    assert found.unserved == pytest.approx(0.0)


def test_removing_a_region_moves_all_of_it() -> None:
    before = snapshot()
    after = before.changed(
        2,
        [
            resource("Model", "smol", regions=["frankfurt"], context_tokens=2048),
            resource("Route", "all", models=["*"], tenants=["*"], regions=["frankfurt"]),
        ],
        [Key("Region", "singapore")],
    )
    found = forecast(seen(FLOWS), State(), before, after, NOW_S)
    assert loads(found) == {"singapore": 0.0, "frankfurt": 80.0}
    assert {load.region: load.capacity for load in found.regions}["singapore"] == 0.0
