"""One round after the other: what is worth writing. A state that differs each second would be a
write to the store, to every replica's disk and to nodes each second."""

from __future__ import annotations

from random import Random

import msgspec

from control_plane.directives.observed import (
    ClassLoad,
    CoreReport,
    EdgeReport,
    Observed,
    RegionSeen,
)
from control_plane.directives.state import Drain, Outlook, State
from control_plane.director.decide import WORDS_EVERY_S, Decided, decide
from tests.topology.worlds import base, edge, link
from topology.snapshot import Snapshot

ALL = "standard:dubai|frankfurt|singapore"
NOW = 1_000_000.0
DISTANCES = {
    "london": {"frankfurt": 18.0, "dubai": 123.0, "singapore": 173.0},
    "paris": {"frankfurt": 9.0, "dubai": 130.0, "singapore": 180.0},
}


def world() -> Snapshot:
    """Three regions of 100 tokens/s each, of which 85 may be given."""
    links = [link("paris", region, rtt) for region, rtt in DISTANCES["paris"].items()]
    return base(edge("paris"), *links)


def seen(state: State, tokens: float, noise: float, rng: Random, now_s: float) -> Observed:
    """Two edges that ask for `tokens` together, and send them where the state says."""
    edges = {}
    for name, line in DISTANCES.items():
        asked = tokens / 2 * (1 + rng.gauss(0, noise))
        told = state.shares.get(name, {}).get(ALL) or {"frankfurt": 1.0}
        flows = {region: asked * part for region, part in told.items()}
        views = {region: RegionSeen(True, ms * (1 + rng.gauss(0, noise / 5)), 1.0) for region, ms
                 in line.items()}  # fmt: skip
        edges[f"edge/{name}"] = EdgeReport(
            f"edge/{name}", name, now_s, {ALL: ClassLoad(asked / 50, asked, 0.0, flows)}, views,
            load_at_s=now_s, seen_at_s=now_s,
        )  # fmt: skip
    return Observed(now_s, edges, {"core/dubai": CoreReport("core/dubai", "dubai", now_s, 0.1)})


def writes(tokens: float, noise: float, rounds: int = 60) -> int:
    """How many rounds are written once everything has settled."""
    rng, state, written = Random(4), State(), 0
    for step in range(2 * rounds):
        now_s = NOW + step
        observed = seen(state, tokens, noise, rng, now_s)
        decided = decide(world(), state, observed, {"frankfurt": True, "dubai": True}, now_s)
        wanted = decided.stamped(7, "cp-1", now_s)
        written += wanted is not None and step >= rounds
        state = wanted or state
    return written


def test_a_steady_world_is_written_once() -> None:
    assert [writes(tokens, 0.0) for tokens in (80, 120, 400)] == [0, 0, 0]


# Replicas smooth what they are told: 1% here is 2.5% of what edges count.
def test_noise_is_hardly_ever_worth_a_write() -> None:
    assert writes(80, 0.02) == 0
    assert writes(120, 0.02) == 0
    assert writes(400, 0.01) <= 60 / WORDS_EVERY_S, "more than the words of a note"


def test_words_are_written_every_few_seconds_and_what_counts_at_once() -> None:
    drain = Drain("dubai", 40.0, 100.0, NOW, paused="frankfurt is at 91% of its capacity")
    before = State(term=7, number=1, at_s=NOW, drains={"dubai": drain}, notes=("at 91%",))

    def written(after_s: float, **changes: object) -> bool:
        state = msgspec.structs.replace(before, **changes)
        return Decided(before, state, Outlook(), {}).stamped(7, "cp-1", NOW + after_s) is not None

    worded = {"dubai": msgspec.structs.replace(drain, paused="frankfurt is at 92%")}
    assert not written(1.0, drains=worded, notes=("at 92%",))
    assert written(WORDS_EVERY_S, drains=worded, notes=("at 92%",))
    assert written(-100.0, notes=("at 92%",)), "the clock was set back"
    goes_on = {"dubai": msgspec.structs.replace(drain, paused="")}
    assert written(1.0, drains=goes_on)
    assert written(1.0, drains={})
    assert not written(1.0)
