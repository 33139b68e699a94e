"""What is read from Consul's answers, whoever wrote them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane.directives.observed import Member
from control_plane.membership.consul_catalog import (
    META_MAX,
    members_of,
    meta_of,
    next_index,
    status_of,
)
from tests.membership.worlds import core

NODE = "core/singapore"


def instance(member: Member, status: str, output: str = "", **more: Any) -> dict[str, Any]:
    checks = [
        {"CheckID": "serfHealth", "Status": more.get("agent", "passing"), "ServiceID": ""},
        {"CheckID": f"service:{member.node}", "Status": status, "Output": output}
        | {"ServiceID": member.node},
    ]
    service = {"ID": member.node, "Meta": meta_of(member), "ModifyIndex": more.get("index", 7)}
    return {"Node": {"Node": "a"}, "Service": service, "Checks": checks}


@pytest.mark.parametrize(
    ("status", "output", "agent", "found"),
    [
        ("passing", "", "passing", core()),
        ("warning", "", "passing", core(healthy=False, draining=True)),
        ("critical", "the node says so", "passing", core(healthy=False)),
        ("critical", "TTL expired (last output: fine)", "passing", None),
        ("passing", "", "critical", None),  # its agent is gone
    ],
)
def test_what_checks_say(status: str, output: str, agent: str, found: Member | None) -> None:
    members = members_of([instance(core(), status, output, agent=agent)])
    assert members == ({} if found is None else {NODE: found})


@pytest.mark.parametrize("order", [1, -1])
def test_where_two_agents_know_a_node_the_living_one_counts(order: int) -> None:
    old = instance(core(incarnation="old"), "critical", "fails", index=9)
    new = instance(core(incarnation="new"), "passing", index=8)
    assert members_of([old, new][::order]) == {NODE: core(incarnation="new")}
    newer = instance(core(incarnation="newer"), "passing", index=9)
    assert members_of([new, newer][::order]) == {NODE: core(incarnation="newer")}


@pytest.mark.parametrize(
    "raw",
    [
        None,
        [],
        {},
        {"Service": {}},
        {"Service": {"ID": NODE, "Meta": None}, "Checks": None},
        {"Service": {"ID": NODE, "Meta": {"node": NODE}}},
        {"Service": {"ID": NODE, "Meta": meta_of(core()) | {"since": "soon"}}, "Checks": []},
        {"Service": {"ID": "core/else", "Meta": meta_of(core())}, "Checks": []},
        {"Service": {"ID": NODE, "Meta": meta_of(core())}, "Checks": []},  # without a check
    ],
)
def test_what_is_not_ours_is_no_member(raw: Any) -> None:
    assert members_of([raw, instance(core("dubai"), "passing")]) == {"core/dubai": core("dubai")}


@pytest.mark.parametrize(
    ("asked", "told", "then"), [(0, 7, 7), (7, 9, 9), (7, 7, 7), (9, 7, 0), (0, 0, 1), (1, 0, 0)]
)
def test_an_index_that_goes_back_begins_anew(asked: int, told: int, then: int) -> None:
    assert next_index(asked, told) == then


@given(
    addresses=st.lists(st.from_regex(r"[a-z0-9.\[\]:-]{1,300}", fullmatch=True), max_size=16),
    since_s=st.floats(0, 4e9),
    healthy=st.booleans(),
)
def test_a_member_survives_the_way_there_and_back(
    addresses: list[str], since_s: float, healthy: bool
) -> None:
    member = core(addresses=tuple(addresses), since_s=since_s, healthy=healthy)
    meta = meta_of(member)
    assert all(len(value) <= META_MAX for value in meta.values())
    status, note = status_of(member)
    (found,) = members_of([instance(member, status, note)]).values()
    kept = found.addresses
    assert kept == member.addresses[: len(kept)]
    assert msgspec.structs.replace(found, addresses=()) == msgspec.structs.replace(
        member, addresses=()
    )
