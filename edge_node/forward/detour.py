"""Where a request goes on when it cannot stay where it is, and whether it may.

Made when that is first asked; nearly all requests end where they began.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_node.errors import AttemptError
from edge_node.forward.blame import fault_of, is_death
from edge_node.forward.ways import Ways
from topology.cursor import tier_of
from topology.overlay.errors import OverlayProtocolError, PathDown
from topology.routing import Candidate, Decision

if TYPE_CHECKING:
    from edge_node.forward.attempt import Ask
    from edge_node.forward.forwarder import Forwarder


class Detour:
    """Of one request, which was sent to `first`. `decision` is the latest that it goes by."""

    __slots__ = (
        "_ask",
        "_coming",
        "_failures",
        "_owner",
        "decision",
        "first",
        "hedged",
        "home",
        "ways",
    )

    def __init__(self, owner: Forwarder, ask: Ask, decision: Decision, first: Candidate) -> None:
        self._owner = owner
        self._ask = ask
        self._coming: Candidate | None = None  # where the next attempt goes
        self._failures = 0  # regions that failed, refused or were silent
        self.decision = decision
        self.first = first.region
        self.hedged = False
        self.home: Candidate | None = None  # the drained region that gave this answer
        self.ways = Ways()
        self.ways.go(first)

    def take(self) -> Candidate:
        """The way that was found is gone now."""
        coming, self._coming = self._coming, None
        assert coming is not None  # `may_go_on` or `leave` found it
        self.ways.go(coming)
        return coming

    def again(self, candidate: Candidate) -> None:
        """Go the same way: who waits now waits longer than the one for whom it was gone."""
        self.ways.reopen(candidate)
        self._coming = candidate

    def rule_out(self, candidate: Candidate, error: AttemptError, *, gave: bool = False) -> None:
        """What is not to be gone again after an attempt there ended so. `gave`: part of the
        answer came that way, so that it may be gone again once it lives again."""
        if isinstance(error, PathDown):
            if not self.ways.lose_core(candidate, died=True):
                self.ways.doubt(candidate)
            if gave:
                self.ways.reopen(candidate)
            return
        if fault_of(error) and self.ways.lose_core(candidate, died=False):
            self._failures += 1
            return
        if self.ways.close(candidate.region) and not is_death(error):
            self._failures += 1

    def may_go_on(self, error: AttemptError, *, begun: bool) -> bool:
        """Whether there is a way to go, to be taken then. `begun`: the answer has."""
        # A frame that breaks the protocol says nothing about the request; others may be sane.
        if not (error.retryable or isinstance(error, OverlayProtocolError)):
            return False
        if self._failures >= self._ask.attempts:
            return False
        coming = self._way(anywhere=begun)
        if coming is None:
            return False
        if not (begun or is_death(error) or self.home is not None):
            if not self._owner.budget.spend(self._owner.now()):
                return False
            self._owner.figures.retried += 1
        self._coming = coming
        return True

    def _way(self, anywhere: bool) -> Candidate | None:
        """The best way that is left. The world is looked at anew. `anywhere`: even where the gate
        lets nobody new in, as an answer that has begun has cost something already."""
        decision = self._decide()
        open_now = decision.candidates if anywhere else self._admitting(decision)
        coming = self.ways.next(open_now)
        home = self.home
        if coming is None and home is not None and _only_drained(home.region, decision):
            coming = self.ways.next((home,))
        elif decision.demand_class:
            self.decision = decision
        return coming

    def other(self, besides: Candidate | None = None) -> Candidate | None:
        """The way that would be taken now; see `Ways.next`."""
        return self.ways.next(self._admitting(self._decide()), besides)

    def _admitting(self, decision: Decision) -> tuple[Candidate, ...]:
        """The regions that take such a request now. Only those that it may go to are asked about:
        the gate counts who is asked about."""
        ask, owner, may_go = self._ask, self._owner, self.ways.may_go
        tier, now = tier_of(ask.priority), owner.now()
        return tuple(
            candidate
            for candidate in decision.candidates
            if may_go(candidate)
            and not owner.gate.judge(candidate.region, tier, ask.cursor, ask.cost, now)
        )

    def elsewhere(self, region: str) -> Candidate | None:
        """Where an answer would go if it left `region`, which nothing but a drain forbids."""
        candidates = self._decide().candidates
        if any(candidate.region == region for candidate in candidates):
            return None
        return self.ways.next(candidates)

    def leave(self, home: Candidate) -> bool:
        """Leave a drained region, if there is another way to go, to be taken then."""
        coming = self.elsewhere(home.region)
        if coming is None:
            return False
        self.ways.reopen(home)  # should it ever be open again
        self.home, self._coming = home, coming
        return True

    def _decide(self) -> Decision:
        ask, choice = self._ask, self._owner.choice
        if ask.stand_in:
            return choice.decide_stand_in(ask.tenant, ask.model)
        return choice.decide(ask.tenant, ask.model)


def _only_drained(region: str, decision: Decision) -> bool:
    """Whether nothing but an override keeps requests out of it, by the configuration of now."""
    return any(out.region == region and out.rule == "override" for out in decision.excluded)
