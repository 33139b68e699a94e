"""The waiting room: who is next, and that room is never left unused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_node.admission.gate import Hindrance
from edge_node.admission.waiting import Granted, Shed, WaitingRoom, Wish
from topology.cursor import TIERS, USERS, Tier
from topology.fair_queue import FLOOR, URGENCIES, QueueFull

LONG_S = 1e6


def wish(
    number: int,
    tier: Tier = "standard",
    *regions: str,
    tenant: str = "acme",
    place: int = 0,
    cost: float = 10.0,
    weight: float = 1.0,
) -> Wish:
    cursor = TIERS.index(tier) * USERS + place
    return Wish(number, tenant, tier, weight, cursor, cost, LONG_S, regions or ("here",))


def filled(*wishes: Wish, capacity: int = 1000) -> WaitingRoom:
    room = WaitingRoom(capacity)
    for each in wishes:
        room.push(each, 0.0, LONG_S)
    return room


def everywhere(_: str, __: Wish) -> Hindrance:
    return ""


def nowhere(_: str, __: Wish) -> Hindrance:
    return "limit"


def only(*regions: str) -> Callable[[str, Wish], Hindrance]:
    return lambda region, _: "" if region in regions else "limit"


def order(room: WaitingRoom, judge: Callable[[str, Wish], Hindrance] = everywhere) -> list[int]:
    found = []
    while type(granted := room.next(1.0, judge)) is Granted:
        found.append(granted.wish.id)
    return found


def test_vip_first_then_standard_then_batch() -> None:
    room = filled(wish(1, "batch"), wish(2, "standard"), wish(3, "vip"), wish(4, "vip"))
    assert order(room) == [3, 4, 2, 1]


def test_who_may_go_nowhere_keeps_nobody_else_waiting() -> None:
    room = filled(wish(1, "vip", "full"), wish(2, "batch", "free"), wish(3, "batch", "full"))
    assert order(room, only("free")) == [2]
    assert room.waiting() == {"vip": 1, "standard": 0, "batch": 1}


def test_a_tier_without_room_keeps_no_other_waiting() -> None:
    room = filled(wish(1, "vip"), wish(2, "standard"), wish(3, "batch"))
    judge = lambda _, w: "limit" if w.tier == "vip" else ""  # noqa: E731
    assert order(room, judge) == [2, 3]


def test_its_own_order_of_regions_counts() -> None:
    room = filled(wish(1, "vip", "near", "far"))
    granted = room.next(0.0, only("far", "near"))
    assert type(granted) is Granted and granted.region == "near"


def test_a_user_out_of_turn_does_not_wait_but_vip_does() -> None:
    room = filled(
        wish(1, "standard", place=90), wish(2, "standard", place=10), wish(3, "vip", place=90)
    )
    level = USERS + 50  # admits VIP, and the first of standard

    def judge(_: str, w: Wish) -> Hindrance:
        return "" if w.cursor < (level if w.tier != "vip" else 50) else "level"

    shed = room.next(0.0, judge)
    assert type(shed) is Shed and shed.wish.id == 1
    granted = room.next(0.0, judge)
    assert type(granted) is Granted and granted.wish.id == 2
    assert room.next(0.0, judge) is None
    assert 3 in room


def test_bounded_and_the_less_urgent_give_way() -> None:
    room = filled(wish(1, "batch"), wish(2, "batch", "other"), capacity=2)
    displaced = room.push(wish(3, "vip"), 0.0, LONG_S)
    assert displaced is not None and displaced.id in (1, 2)
    assert len(room) == 2
    room.push(wish(4, "standard"), 0.0, LONG_S)
    with pytest.raises(QueueFull):
        room.push(wish(5, "batch", tenant="globex"), 0.0, LONG_S)
    assert sorted(order(room)) == [3, 4]


def test_a_tenant_that_fills_the_room_gives_way_to_others_of_its_tier() -> None:
    room = filled(*(wish(n) for n in range(5)), capacity=5)
    displaced = room.push(wish(9, tenant="globex"), 0.0, LONG_S)
    assert displaced is not None and displaced.tenant == "acme"
    assert order(room)[:2].count(9) == 1


def test_a_million_tenants_are_bounded() -> None:
    room = WaitingRoom(64)
    for n in range(20_000):
        try:
            room.push(wish(n, tenant=f"t{n}"), 0.0, LONG_S)
        except QueueFull:
            continue
    assert len(room) == 64
    assert len(room._lines) == 1
    assert sum(line.queue.tenants(3) for line in room._lines.values()) == 64


def test_leaving_and_the_end_of_patience() -> None:
    room = WaitingRoom(10)
    for number, until in ((1, 5.0), (2, 1.0), (3, 9.0)):
        room.push(wish(number), 0.0, until)
    assert room.leave(3) and not room.leave(3)
    assert [w.id for w in room.expire(2.0)] == [2]
    assert [w.id for w in room.expire(-50.0)] == []  # a clock that went back
    assert [w.id for w in room.expire(1e12)] == [1]  # or far ahead
    assert len(room) == 0 and not room._lines


def test_lines_share_a_region_by_how_many_tenants_wait_in_each() -> None:
    wishes = [wish(n, "standard", "both", "one", tenant=f"a{n % 3}") for n in range(300)]
    wishes += [wish(1000 + n, "standard", "both", tenant="b") for n in range(300)]
    room = filled(*wishes)
    given_to = Counter(
        room.next(1.0, only("both")).wish.tenant[0]  # type: ignore[union-attr]
        for _ in range(100)
    )
    assert 65 <= given_to["a"] <= 85


def test_no_tier_of_any_line_starves() -> None:
    """The stated bound: one of `(FLOOR + URGENCIES) * (FLOOR + lines)` places."""
    room = filled(wish(1, "batch", "here"))
    bound, number = (FLOOR + URGENCIES) * (FLOOR + 2), 10
    for place in range(bound):
        for regions in (("here",), ("here", "there")):
            number += 1
            room.push(wish(number, "vip", *regions, tenant=f"v{number % 5}"), 0.0, LONG_S)
        granted = room.next(1.0, only("here"))
        assert type(granted) is Granted
        if granted.wish.id == 1:
            assert place > 0  # VIP did go first
            return
    raise AssertionError("it starved")


REGIONS = ("a", "b", "c")
WISHES = st.tuples(
    st.sampled_from(TIERS),
    st.lists(st.sampled_from(REGIONS), min_size=1, max_size=3, unique=True),
    st.sampled_from(["t1", "t2", "t3"]),
    st.integers(0, USERS - 1),
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(WISHES, max_size=25),
    st.dictionaries(st.sampled_from(REGIONS), st.integers(0, 6)),
    st.dictionaries(st.tuples(st.sampled_from(REGIONS), st.sampled_from(TIERS)), st.integers(0, 3)),
    st.dictionaries(st.sampled_from(REGIONS), st.integers(0, 3 * USERS)),
)
def test_work_is_conserved_and_nobody_is_lost(
    wishes: list[tuple[Tier, list[str], str, int]],
    rooms: dict[str, int],
    shares: dict[tuple[str, Tier], int],
    levels: dict[str, int],
) -> None:
    """Once `next` has nobody to name, nobody who waits could go anywhere, and each who came was let
    in once, shed once, or waits."""
    room, used, used_by = WaitingRoom(1000), Counter[str](), Counter[tuple[str, Tier]]()

    def judge(region: str, w: Wish) -> Hindrance:
        if w.cursor >= levels.get(region, 3 * USERS):
            return "level"
        if used_by[region, w.tier] >= shares.get((region, w.tier), 99):
            return "limit"
        return "" if used[region] < rooms.get(region, 0) else "limit"

    waiting = {}
    for number, (tier, regions, tenant, place) in enumerate(wishes):
        waiting[number] = wish(number, tier, *regions, tenant=tenant, place=place)
        room.push(waiting[number], 0.0, LONG_S)
    while (found := room.next(1.0, judge)) is not None:
        gone = waiting.pop(found.wish.id)
        if type(found) is Granted:
            assert found.region in gone.regions and not judge(found.region, gone)
            used[found.region] += 1
            used_by[found.region, gone.tier] += 1
        else:
            assert gone.tier != "vip"
            assert all(judge(region, gone) == "level" for region in gone.regions)
    assert len(room) == len(waiting)
    assert all(number in room for number in waiting)
    for left in waiting.values():
        assert all(judge(region, left) for region in left.regions)
    assert sum(room.waiting().values()) == len(waiting)
    for number in waiting:
        assert room.leave(number)
    assert not room._lines
