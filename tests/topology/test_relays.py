"""Which relays are worth keeping: where links lead, the nearest, few, and steadily so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.topology.worlds import base_documents, document, link, region, resources
from topology.relays import candidates
from topology.snapshot import Snapshot


def onward(source: str, target: str, rtt_ms: float) -> dict[str, Any]:
    return document(
        "Link",
        f"{source}-{target}",
        source=f"Region/{source}",
        target=f"Region/{target}",
        rtt_ms=rtt_ms,
    )


BETWEEN = [
    onward("frankfurt", "singapore", 161),
    onward("dubai", "singapore", 90),
    onward("dubai", "frankfurt", 116),
]


def world(*extra: dict[str, Any], relays: int = 2) -> Snapshot:
    policy = document("Policy", "default", paths={"relays_per_region": relays})
    return Snapshot.build(1, resources([*base_documents(), *BETWEEN, policy, *extra]))


def kept(
    snapshot: Snapshot,
    measured: Mapping[str, float] = {},
    *before: str,
    to: str = "singapore",
) -> tuple[str, ...]:
    return candidates(snapshot, "london", to, measured.get, kept=before)


def test_the_nearest_in_all_first() -> None:
    assert kept(world()) == ("frankfurt", "dubai"), "18 + 161 and 123 + 90 ms"
    assert kept(world(), {"frankfurt": 60.0}) == ("dubai", "frankfurt"), "as measured"


def test_only_where_a_link_leads_on_and_never_the_region_itself() -> None:
    assert kept(world(), to="frankfurt") == ("dubai",)
    assert kept(world(), to="dubai") == ()
    assert kept(world(), to="nowhere") == ()


def test_no_more_than_the_policy_says() -> None:
    assert kept(world(relays=1)) == ("frankfurt",)
    assert kept(world(relays=0)) == ()


def test_a_relay_at_an_unknown_distance_comes_last() -> None:
    far = [region("atlantis", "GB"), onward("atlantis", "singapore", 1)]
    assert kept(world(*far, relays=3)) == ("frankfurt", "dubai", "atlantis")
    linked = [*far, link("london", "atlantis", 5)]
    assert kept(world(*linked, relays=3)) == ("atlantis", "frankfurt", "dubai")


def test_kept_ones_stay_unless_others_are_much_better() -> None:
    one = world(relays=1)
    assert kept(one, {"frankfurt": 60.0}, "frankfurt") == ("frankfurt",), "221 against 213 ms"
    assert kept(one, {"frankfurt": 260.0}, "frankfurt") == ("dubai",), "421 against 213 ms"
    assert kept(one, {}, "gone") == ("frankfurt",)


@given(st.lists(st.floats(0.86, 1.14), min_size=2, max_size=40))
def test_noise_changes_none(moves: list[float]) -> None:
    snapshot, held = world(relays=1), ("frankfurt",)
    for at, move in enumerate(moves):
        measured = {"frankfurt": 18.0, "dubai": 123.0}
        measured["dubai" if at % 2 else "frankfurt"] *= move
        held = kept(snapshot, measured, *held)
        assert held == ("frankfurt",)
