"""Operators' words about regions: what change each becomes, and where a paced one begins."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import pytest

from control_plane import keys
from control_plane.changes import safety
from control_plane.changes.errors import ChangeConflict, UnknownResource
from control_plane.changes.overrides import Order, clear_override, set_override
from control_plane.changes.plan import Base, Knowledge, Wanted, make_plan
from control_plane.store.base import Entry, Listing
from runtime.validation import InvalidDocument
from tests.control_plane.mesh import resource, world
from topology import resources as res
from topology.directive import NONE, Directive
from topology.resources import Key, OverrideSpec, Resource
from topology.routing import Standing, standing
from topology.snapshot import Snapshot

NOW_S = 1_700_000_000.0
ORDER = Order(regions=("singapore",), action="drain", reason="upgrade")


def held(name: str = "singapore", revision: int = 5, **spec: Any) -> Resource:
    full = {"region": "singapore", "action": "drain", "reason": "before"} | spec
    return msgspec.structs.replace(resource("Override", name, **full), revision=revision)


def told(percent: float, revision: int = 5, region: str = "singapore") -> Directive:
    return Directive(drains={region: percent}, overrides={region: revision})


def order(
    *there: Resource, directive: Directive = NONE, given: Order = ORDER, **changed: Any
) -> Wanted:
    return set_override(msgspec.structs.replace(given, **changed), there, directive, NOW_S)


def spec_of(wanted: Wanted, region: str = "singapore") -> OverrideSpec:
    [found] = [put.spec for put in wanted.puts if put.name == region]
    assert isinstance(found, OverrideSpec)
    return found


def test_a_deadline_is_kept_with_the_drain_and_none_is_none() -> None:
    assert spec_of(order(deadline_s=30.0)).deadline_s == 30.0
    assert spec_of(order(deadline_s=0.0)).deadline_s == 0.0
    assert spec_of(order()).deadline_s is None


def test_several_regions_are_one_change() -> None:
    wanted = order(regions=("singapore", "dubai"), percent=30.0, expires_s=NOW_S + 60)
    assert [put.key for put in wanted.puts] == [
        Key("Override", "singapore"),
        Key("Override", "dubai"),
    ]
    assert spec_of(wanted, "dubai") == OverrideSpec(
        region="dubai", action="drain", reason="upgrade", percent=30.0, expires_s=NOW_S + 60
    )


BEGINNINGS: list[tuple[list[Resource], Directive, float]] = [
    ([], NONE, 0.0),
    ([held(percent=40.0)], NONE, 40.0),
    ([held(percent=40.0, expires_s=NOW_S - 1)], NONE, 0.0),
    ([held(percent=80.0, over_s=60.0)], told(33.3), 33.3),
    ([held(percent=80.0, over_s=60.0, from_percent=10.0)], NONE, 10.0),
    # The director's word is of an override that is no longer there: it counts for nothing.
    ([], told(33.3), 0.0),
    ([held(percent=80.0, over_s=60.0, revision=9)], told(33.3), 0.0),
    ([held("by-hand", percent=70.0), held(percent=20.0)], NONE, 70.0),
]


@pytest.mark.parametrize(("there", "directive", "begins"), BEGINNINGS)
def test_a_paced_one_begins_where_the_region_stands(
    there: list[Resource], directive: Directive, begins: float
) -> None:
    wanted = order(*there, directive=directive, over_s=600.0)
    spec = spec_of(wanted)
    assert (spec.from_percent, spec.percent, spec.over_s) == (begins, 100.0, 600.0)
    for override in there:
        if override.name == "singapore":
            assert wanted.puts[0].revision == override.revision, "guarded by what it goes on from"
        else:
            assert override.key in wanted.removes, "one override per region"


def test_one_that_nobody_was_to_put_there_is_a_conflict() -> None:
    """Two operators at once: the second read before the first wrote."""
    wanted = order(over_s=600.0)
    base = Base.of(Listing(9, (Entry(keys.of_resource(held().key), res.encode(held()), 8),)))
    with pytest.raises(ChangeConflict, match="Override/singapore is at revision 8; yours is new"):
        make_plan(base, wanted, Knowledge(), NOW_S)


def test_an_immediate_one_has_no_beginning() -> None:
    assert spec_of(order(held(percent=40.0))).from_percent == 0.0


def test_restore_at_once_removes_whatever_there_is() -> None:
    there = [held(), held("by-hand"), held("dubai", region="dubai"), held("other", region="oslo")]
    wanted = clear_override(["singapore", "dubai"], "done", there)
    assert sorted(map(str, wanted.removes)) == [
        "Override/by-hand",
        "Override/dubai",
        "Override/singapore",
    ]
    assert not wanted.puts


def test_restore_over_a_time_goes_to_nothing_from_where_it_stands() -> None:
    there = [held(percent=80.0, over_s=60.0, action="failover", expires_s=NOW_S + 900)]
    wanted = clear_override(["singapore"], "done", there, told(52.0), NOW_S, over_s=120.0)
    assert spec_of(wanted) == OverrideSpec(
        region="singapore",
        action="failover",
        reason="done",
        percent=0.0,
        over_s=120.0,
        from_percent=52.0,
        expires_s=NOW_S + 900,
    )
    expired = [held(expires_s=NOW_S - 1)]
    wanted = clear_override(["singapore"], "done", expired, NONE, NOW_S, over_s=120.0)
    assert (wanted.puts, wanted.removes) == ((), (Key("Override", "singapore"),))


def test_restoring_what_nothing_overrides_names_it() -> None:
    with pytest.raises(UnknownResource, match="nothing overrides region dubai, oslo"):
        clear_override(["singapore", "dubai", "oslo"], "done", [held()])


WRONG: list[tuple[dict[str, Any], Iterable[str]]] = [
    ({"regions": ()}, ["at least one region"]),
    ({"regions": ("", "*")}, ["found ''", "found '*'"]),
    ({"regions": ("Frankfurt", "dubai")}, ["found 'Frankfurt'"]),
    ({"regions": ("dubai", "dubai")}, ["dubai twice"]),
    ({"reason": " "}, ["reason"]),
    ({"action": "drown"}, ["action"]),
    ({"percent": 101.0}, ["percent"]),
    ({"percent": float("nan")}, ["percent"]),
    ({"expires_s": NOW_S - 1}, ["a time that has passed"]),
    ({"expires_s": NOW_S + 30, "over_s": 60.0}, ["before it gets there"]),
    ({"expires_s": NOW_S + 100, "over_s": 60.0, "deadline_s": 60.0}, ["before its deadline"]),
    ({"deadline_s": 60.0, "percent": 99.0}, ["a deadline, of 99%"]),
    ({"deadline_s": -1.0}, ["deadline_s"]),
    ({"deadline_s": 1e9}, ["deadline_s"]),
    ({"over_s": -1.0}, ["over_s"]),
    ({"over_s": 1e9}, ["over_s"]),
    ({"regions": ("a", "b"), "reason": "", "percent": -1.0}, ["reason", "percent"]),
]


@pytest.mark.parametrize(("changed", "messages"), WRONG)
def test_every_mistake_is_told_once(changed: dict[str, Any], messages: Iterable[str]) -> None:
    with pytest.raises(InvalidDocument) as caught:
        order(**changed)
    text = [str(problem) for problem in caught.value.problems]
    for message in messages:
        assert sum(message in line for line in text) == 1, text


def test_what_holds_of_a_paced_override_on_a_node() -> None:
    paced = held(percent=90.0, over_s=60.0, from_percent=20.0)
    snapshot = Snapshot(9, {**Snapshot.empty()._by_kind, "Override": {"singapore": paced}})

    def percent(directive: Directive) -> float:
        found = standing(snapshot, "singapore", NOW_S, directive)
        assert isinstance(found, Standing)
        return found.percent

    assert percent(NONE) == 20.0, "no director ever spoke: it stands where it began"
    assert percent(told(55.0)) == 55.0
    assert percent(told(55.0, revision=4)) == 20.0, "of the override before it"
    assert percent(told(55.0, revision=6)) == 55.0, "the node has yet to hear of the newer one"
    assert percent(told(55.0, region="dubai")) == 20.0


def test_a_region_that_requests_return_to_over_a_time_is_not_one_that_is_left() -> None:
    back = held("frankfurt", region="frankfurt", percent=0.0, over_s=600.0, from_percent=100.0)
    before = Snapshot.build(1, [*world(), back])
    after = before.changed(2, [held("singapore")])
    assert [r.rule for r in safety.refusals(before, after, NOW_S)] == ["last-region"]
    restored = Snapshot.build(1, world())
    assert not safety.refusals(restored, restored.changed(2, [held("singapore")]), NOW_S)
