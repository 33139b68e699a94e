"""May a VIP that waits take the slot of one that runs, and whose? Pure.

What the loser has made is not lost: it is input when it runs again. That costs the engine the time
of taking it in, so it is done within a budget, a share of all time: whatever comes, the rest of
the engine goes to work that is asked for. And it is done only where it is of use: when the VIP
would have to wait longer than `PATIENCE_S` in all.

The loser is of the least urgent tier that runs; of these, the one with the fewest tokens to take in
again. A sequence loses its slot a bounded number of times, and one that has its level's floor place
keeps it: so each that gets a slot comes to its end.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

VIP = 1  # requests of this urgency, or more urgent
PATIENCE_S = 0.05
SHARE = 0.015  # of the engine's time, for input that is taken in again
PAUSED = 0.25  # of the slots: so many sequences may wait for another one, at most
BURST_S = 0.1  # of such time, saved up while none was needed


class Claim(Struct, frozen=True):
    """A VIP that waits, with nobody before it."""

    waited_s: float
    wait_s: float  # until a slot is left by itself


class Victim(Struct, frozen=True):
    """One that runs."""

    id: int
    urgency: int
    times: int  # that it lost a slot
    tokens: int  # to be taken in again
    spared: bool = False  # it keeps its slot, whatever comes


class Preemption:
    """What has been spent. A clock that jumps back earns nothing, one that jumps ahead no more
    than `BURST_S`."""

    def __init__(self, most: int) -> None:
        self.most = most  # times that one sequence may lose its slot
        self.count = 0
        self._saved_s = BURST_S
        self._at = 0.0

    def choose(
        self, claim: Claim, running: Iterable[Victim], token_s: float, now: float
    ) -> Victim | None:
        """Who loses its slot, `now`; `token_s` is what a token of input costs the engine."""
        if claim.waited_s + claim.wait_s <= PATIENCE_S:
            return None
        found = min(filter(self._may_lose, running), key=_order, default=None)
        self._save(now)
        if found is None or found.tokens * token_s > self._saved_s:
            return None
        self._saved_s -= found.tokens * token_s
        self.count += 1
        return found

    def slots(self, running: Iterable[Victim], token_s: float, now: float) -> int:
        """How many could be taken, `now`."""
        self._save(now)
        saved_s, count = self._saved_s, 0
        for victim in sorted(filter(self._may_lose, running), key=_order):
            saved_s -= victim.tokens * token_s
            if saved_s < 0:
                break
            count += 1
        return count

    def _may_lose(self, victim: Victim) -> bool:
        return victim.urgency > VIP and victim.times < self.most and not victim.spared

    def _save(self, now: float) -> None:
        self._saved_s = min(BURST_S, self._saved_s + SHARE * max(0.0, now - self._at))
        self._at = now


def _order(victim: Victim) -> tuple[int, int, int]:
    """The first loses its slot."""
    return -victim.urgency, victim.tokens, -victim.id
