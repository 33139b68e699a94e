"""Which way a request goes next: none twice, none that is closed, doubtful ones last."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_node.forward.ways import MOST_WAYS, Ways
from topology.paths import name_of
from topology.routing import Candidate


def candidate(region: str, rtt_ms: float, relay: str = "", *others: str) -> Candidate:
    return Candidate(region, rtt_ms, name_of(relay), "", relay=relay, others=others)


FRANKFURT = candidate("frankfurt", 18.0, "", "dubai")
DUBAI = candidate("dubai", 123.0)
SINGAPORE = candidate("singapore", 173.0, "dubai", "")
ALL = (FRANKFURT, DUBAI, SINGAPORE)


def way(found: Candidate | None) -> tuple[str, str] | None:
    return (found.region, found.relay) if found is not None else None


def gone(*candidates: Candidate) -> Ways:
    ways = Ways()
    for each in candidates:
        ways.go(each)
    return ways


def test_first_the_first() -> None:
    assert Ways().next(ALL) is FRANKFURT
    assert Ways().next(()) is None


def cored(cores: int) -> Candidate:
    """Frankfurt, reached at so many cores."""
    return Candidate("frankfurt", 18.0, name_of(""), "", others=("dubai",), cores=cores)


def test_another_core_of_the_region_goes_before_another_region() -> None:
    ways = gone(cored(3))
    assert ways.lose_core(cored(3), died=True)
    there = ways.next((cored(2), DUBAI))
    assert way(there) == ("frankfurt", "")
    assert there is not None
    ways.go(there)
    # The second core dies: the region may, too. Others come first, and it is not closed.
    assert ways.lose_core(there, died=True)
    assert way(ways.next((cored(1), DUBAI))) == ("dubai", "")
    assert way(ways.next((cored(1),))) == ("frankfurt", "")


def test_the_last_core_that_dies_is_the_way() -> None:
    ways = gone(cored(1))
    assert not ways.lose_core(cored(1), died=True)
    ways.doubt(cored(1))
    assert way(ways.next((cored(1), DUBAI))) == ("dubai", "")


def test_each_core_may_fail_a_request_once() -> None:
    ways = gone(cored(2))
    assert ways.lose_core(cored(2), died=False)
    assert way(ways.next((cored(2), DUBAI))) == ("frankfurt", "")
    ways.go(cored(2))
    assert not ways.lose_core(cored(2), died=False)


def test_cores_that_die_for_ever_are_not_tried_for_ever() -> None:
    ways = Ways()
    while (found := ways.next((cored(4),))) is not None:
        ways.go(found)
        if not ways.lose_core(found, died=True):
            ways.doubt(found)
    assert ways.count == MOST_WAYS


def test_a_region_that_refused_is_not_asked_again_whatever_the_way() -> None:
    ways = gone(FRANKFURT)
    ways.close("frankfurt")
    assert way(ways.next(ALL)) == ("dubai", "")
    assert ways.next((FRANKFURT,)) is None


def test_after_a_way_died_another_region_is_surer_than_another_way_to_the_same() -> None:
    ways = gone(FRANKFURT)
    ways.doubt(FRANKFURT)
    assert way(ways.next(ALL)) == ("dubai", "")


def test_unless_that_region_is_so_far_that_trying_is_quicker() -> None:
    near = candidate("frankfurt", 18.0, "", "paris")
    ways = gone(near)
    ways.doubt(near)
    found = ways.next((near, candidate("singapore", 190.0)))
    assert found is not None
    assert (way(found), found.path) == (("frankfurt", "paris"), "via paris")
    assert way(ways.next((near, candidate("dubai", 180.0)))) == ("dubai", "")


def test_the_only_region_is_asked_by_its_other_ways() -> None:
    ways = gone(FRANKFURT)
    ways.doubt(FRANKFURT)
    found = ways.next((FRANKFURT,))
    assert way(found) == ("frankfurt", "dubai")
    assert found is not None
    ways.go(found)
    ways.doubt(found)
    assert ways.next((FRANKFURT,)) is None
    assert ways.names == ["frankfurt", "frankfurt via dubai"]


def test_where_a_way_through_a_relay_died_the_relay_is_in_doubt_as_well() -> None:
    ways = gone(SINGAPORE)
    ways.doubt(SINGAPORE)
    tokyo = candidate("tokyo", 200.0)
    assert way(ways.next((SINGAPORE, DUBAI, tokyo))) == ("tokyo", "")
    # Nobody else: the quicker one of the two that are in doubt.
    assert way(ways.next((SINGAPORE, DUBAI))) == ("dubai", "")


def test_a_second_exchange_goes_elsewhere_than_the_first() -> None:
    ways = gone(FRANKFURT)
    assert way(ways.next(ALL)) == ("frankfurt", "dubai")
    assert way(ways.next(ALL, besides=FRANKFURT)) == ("dubai", "")
    assert way(ways.next((FRANKFURT,), besides=FRANKFURT)) == ("frankfurt", "dubai")


def test_a_way_that_was_left_in_peace_may_be_gone_again() -> None:
    ways = gone(DUBAI)
    assert ways.next((DUBAI,)) is None
    ways.reopen(DUBAI)
    assert ways.next((DUBAI,)) is DUBAI


REGIONS = ("a", "b", "c", "d")


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Candidate, ...]:
    names = draw(st.permutations(REGIONS))[: draw(st.integers(0, 4))]
    return tuple(
        candidate(
            name,
            draw(st.sampled_from([5.0, 40.0, 150.0, 400.0])),
            *draw(st.permutations(["", *(r for r in REGIONS if r != name)]))[:3],
        )
        for name in names
    )


@given(st.lists(st.tuples(worlds(), st.sampled_from(["die", "refuse", "left"])), max_size=12))
def test_whatever_happens_no_way_is_gone_twice_nor_more_than_allowed(
    story: list[tuple[tuple[Candidate, ...], str]],
) -> None:
    ways = Ways()
    went: set[tuple[str, str] | None] = set()
    closed: set[str] = set()
    for candidates, event in story:
        found = ways.next(candidates)
        if found is None:
            open_ways = {
                (c.region, relay)
                for c in candidates
                for relay in (c.relay, *c.others)
                if c.region not in closed
            }
            assert not open_ways - went or len(went) >= MOST_WAYS
            continue
        assert way(found) not in went
        assert found.region not in closed
        [offered] = [c for c in candidates if c.region == found.region]
        assert found.relay in (offered.relay, *offered.others)
        ways.go(found)
        if event == "left":
            ways.reopen(found)
        else:
            went.add((found.region, found.relay))
        if event == "die":
            ways.doubt(found)
        elif event == "refuse":
            ways.close(found.region)
            closed.add(found.region)
        assert len(went) <= MOST_WAYS
