"""What all forwarded requests of one edge worker share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random

from edge_node.admission.gate import Gate
from edge_node.admission.gated import GatedUpstream
from edge_node.figures import Figures
from edge_node.forward.attempt import Ask
from edge_node.forward.attempts import Attempts
from edge_node.forward.budget import Budget
from edge_node.forward.choice import Choice
from edge_node.forward.hedging import FirstTokens
from edge_node.forward.upstream import Upstream
from edge_node.forward.watch import Watch
from edge_node.inflight import Flight
from runtime.metrics import Sample
from topology.routing import Decision
from topology.snapshot import Snapshot

BOUNDLESS_PER_S = 1e9

WAY_BACK_S = 3.0  # an answer that has begun waits so long for a way, where none is left


class Forwarder:
    """Starts attempts; one for the whole worker. `now` is the event loop's clock."""

    def __init__(
        self,
        upstream: Upstream,
        choice: Choice,
        figures: Figures,
        now: Callable[[], float],
        rng: Random | None = None,
    ) -> None:
        self.gate = Gate(rng)
        self.upstream: Upstream = GatedUpstream(upstream, self.gate, now)
        self.choice = choice
        self.figures = figures
        self.now = now  # the clock of flights
        self.budget = Budget()
        self.first_tokens = FirstTokens()
        self.watch = Watch(upstream, choice, figures)
        self.hedges = True
        self.way_back_s = WAY_BACK_S

    def begin(self, ask: Ask, decision: Decision, flight: Flight) -> Attempts:
        """Read it to its end, and `close` it in any case."""
        attempts = Attempts(self, ask, decision, flight)
        self.watch.add(attempts)
        return attempts

    def use(self, snapshot: Snapshot) -> None:
        """Go by this snapshot's policy from now on."""
        policy = snapshot.policy.retries
        self.budget.share = policy.budget_share
        self.budget.min_per_s = policy.budget_min_per_s
        self.hedges = policy.hedge
        if not snapshot.policy.overload.protect:  # for comparison: as if retries cost nothing
            self.budget.min_per_s, self.hedges = BOUNDLESS_PER_S, False
        self.watch.keep(snapshot.regions)
        self.first_tokens.keep(snapshot.regions)
        self.figures.keep(snapshot.regions)
        self.gate.use(snapshot.policy.overload)
        self.gate.keep(snapshot.regions)

    def samples(self) -> Iterable[Sample]:
        budget, name = self.budget, "tradewind_edge_retry_budget_"
        yield Sample(name + "spent_total", "Retries and hedges that were paid.", budget.spent)
        yield Sample(name + "refused_total", "Those that it did not allow.", budget.refused)
        now = self.now()
        left = budget.allowance(now)
        yield Sample(name + "left", "How many it would allow at once now.", left)
        yield from self.gate.samples(now)
