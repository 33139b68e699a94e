"""What a way to a region counts for, and which of several is best, without haste. Pure.

Two orders: in that of *merit* a dead way keeps its place, so that its death alone changes
nothing for good; in that of *use*, those that are up come before those that only just came
back, and the dead come last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf

from msgspec import Struct

from topology.policy import PathPolicy

# What loss costs. A lost packet is sent again after a probe timeout (RFC 9002, section 6.2.1:
# the round trip, four times its variation, and how long the peer may delay its acknowledgement),
# twice as long each further time: p, 2 p^2, 4 p^3 ... of it, so p / (1 - 2 p) in all. So many
# packets of an exchange wait for one another: the request, its acceptance, the first tokens.
ACK_DELAY_MS = 25.0
PACKETS = 8.0
LOSS_MAX = 0.45  # the sum has no end at one half

_DEFAULT = PathPolicy()


class Score(Struct, frozen=True):
    """How one way stands. `ms` None: it was not measured yet. What is below decides nothing."""

    ms: float | None
    up: bool = True
    since_s: float = 0.0  # since when it is up
    held: bool = False  # it is up again since too short a time
    barred: bool = False  # it was left for a better one too short a time ago
    rtt_ms: float = 0.0
    lost_ms: float = 0.0  # of `ms`: what its losses count for
    waits_s: float = 0.0  # how long it is held or barred yet
    state: str = ""
    why: str = ""  # it is in that state

    @property
    def sound(self) -> bool:
        """It may be compared with others."""
        return self.up and not self.held and self.ms is not None


def loss_ms(rtt_ms: float, jitter_ms: float, loss_out: float, loss_back: float) -> float:
    """What losses cost an exchange, in ms. Losses are shares of what is sent."""
    kept = (1.0 - min(1.0, max(0.0, loss_out))) * (1.0 - min(1.0, max(0.0, loss_back)))
    lost = min(LOSS_MAX, 1.0 - kept)
    timeout_ms = rtt_ms + 4.0 * jitter_ms + ACK_DELAY_MS
    return PACKETS * timeout_ms * lost / (1.0 - 2.0 * lost)


def score_ms(
    rtt_ms: float, lost_ms: float = 0.0, relayed: bool = False, rules: PathPolicy = _DEFAULT
) -> float:
    """What a way counts for, in ms. Where regions are compared, their queues come on top; ways
    to one region share it, and are compared without."""
    return rtt_ms + lost_ms + (rules.relay_ms if relayed else 0.0)


def wins(challenger_ms: float, held_ms: float, rules: PathPolicy) -> bool:
    """Whether a way is so much better than the one before it that it is worth a change."""
    won_ms = held_ms - challenger_ms
    return won_ms > 0 and won_ms >= max(rules.better_by_ms, rules.better_by_share * held_ms)


def merit(order: Sequence[str], seen: Mapping[str, Score], rules: PathPolicy) -> tuple[str, ...]:
    """The order of merit, from what it was. Nobody in it wins against one before it, but for
    those that may not be compared, which keep their place, or are barred."""
    left = [relay for relay in order if relay in seen]
    done = []
    while left:
        best = left[0]
        if seen[best].sound:
            held_ms = ms_of(seen[best])
            better = [
                (ms_of(seen[relay]), at)
                for at, relay in enumerate(left)
                if seen[relay].sound
                and not seen[relay].barred
                and wins(ms_of(seen[relay]), held_ms, rules)
            ]
            if better:
                best = left[min(better)[1]]
        left.remove(best)
        done.append(best)
    return tuple(done)


def usable(order: Sequence[str], seen: Mapping[str, Score]) -> tuple[str, ...]:
    """The order of use, from that of merit: those that are sound; the others that are up, the
    longest first; the dead."""
    place = {relay: at for at, relay in enumerate(order)}

    def key(relay: str) -> tuple[int, float, int]:
        score = seen[relay]
        if score.sound:
            return 0, 0.0, place[relay]
        return (1, score.since_s, place[relay]) if score.up else (2, 0.0, place[relay])

    return tuple(sorted((relay for relay in order if relay in seen), key=key))


def rank(
    order: Sequence[str], seen: Mapping[str, Score], rules: PathPolicy = _DEFAULT
) -> tuple[str, ...]:
    """The order of use, from the order of merit before. Those of `seen` that `order` does not
    have are new, and taken by their scores."""
    return usable(merit(with_new(order, seen, rules), seen, rules), seen)


def with_new(order: Sequence[str], seen: Mapping[str, Score], rules: PathPolicy) -> tuple[str, ...]:
    """`order` with those of `seen` that it does not have."""
    have = set(order)
    for relay in sorted(relay for relay in seen if relay not in have):
        order = placed(order, relay, seen, rules)
    return tuple(order)


def placed(
    order: Sequence[str], relay: str, seen: Mapping[str, Score], rules: PathPolicy
) -> tuple[str, ...]:
    """`order` with `relay` where its score puts it, whatever won so far. Of ways that are about
    as good, within `better_by_ms`, the straight one is first: it needs nobody else."""

    def count_ms(relay: str) -> float:
        return ms_of(seen[relay]) + (rules.better_by_ms if relay else 0.0)

    others = [other for other in order if other != relay and other in seen]
    mine = count_ms(relay)
    at = next((i for i, other in enumerate(others) if count_ms(other) > mine), len(others))
    return (*others[:at], relay, *others[at:])


def ms_of(score: Score) -> float:
    return score.ms if score.ms is not None else inf
