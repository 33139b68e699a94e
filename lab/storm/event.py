"""The event and the people in it: how much comes when, from where, and what they do. Pure.

The figures are those of the incident: normal load of 8,000 requests a minute; a news event brings
120,000 a minute; 83% of the event's requests fall in its first quarter; 42% come from one city,
28% from a second, 15% from a third; clients that wait too long send again, and repeats triple the
load. Rates are multiplied by `scale`, and the hours of the event become `duration_s`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from random import Random

from msgspec import Struct

from topology.cursor import Tier


class Share(Struct, frozen=True):
    """A named part of a whole."""

    name: str
    share: float


class TierShare(Struct, frozen=True):
    """One tier: its share of requests, and how many tenants it has."""

    tier: Tier
    share: float
    tenants: int


class Event(Struct, frozen=True, kw_only=True):
    """What comes, and when. Rates before scaling; times as they are run."""

    normal_per_min: float = 8_000.0
    times: float = 15.0  # normal load, in the first quarter
    first_quarter_share: float = 0.83  # of the event's requests
    baseline_s: float = 15.0  # of normal load, before the event: what "unloaded" means
    duration_s: float = 40.0
    scale: float = 0.2
    cities: tuple[Share, ...] = (
        Share("tokyo", 0.42),
        Share("mumbai", 0.28),
        Share("london", 0.15),
        Share("riyadh", 0.15),  # stands for everywhere else
    )

    @property
    def normal_rps(self) -> float:
        return self.normal_per_min / 60 * self.scale

    @property
    def peak_rps(self) -> float:
        return self.normal_rps * self.times

    @property
    def peak_s(self) -> float:
        """How long the peak lasts."""
        return self.duration_s / 4

    @property
    def tail_rps(self) -> float:
        """What is left for the other three quarters."""
        whole = self.peak_rps * self.peak_s / self.first_quarter_share
        return whole * (1 - self.first_quarter_share) / (self.duration_s - self.peak_s)

    @property
    def phases(self) -> tuple[Phase, ...]:
        begins, ends = self.baseline_s, self.baseline_s + self.duration_s
        return (
            Phase("baseline", 0.0, begins, self.normal_rps),
            Phase("peak", begins, begins + self.peak_s, self.peak_rps),
            Phase("tail", begins + self.peak_s, ends, self.tail_rps),
        )


class Phase(Struct, frozen=True):
    """A time of even load. Seconds since the run began."""

    name: str
    begins_s: float
    ends_s: float
    rps: float

    @property
    def requests(self) -> int:
        return round((self.ends_s - self.begins_s) * self.rps)


class Population(Struct, frozen=True, kw_only=True):
    """Who asks, what, and what they do when no answer comes."""

    tiers: tuple[TierShare, ...] = (
        TierShare("vip", 0.05, 2),
        TierShare("standard", 0.70, 5),
        TierShare("batch", 0.25, 3),
    )
    # Of normal load before the event all tiers take the same part: otherwise a tier of 5% would
    # have too few requests for an unloaded p99.
    baseline_even: bool = True
    users: int = 4_000
    questions: int = 2_000  # that there are
    zipf: float = 1.1  # the n-th most popular one is asked n^-zipf times as often as the first
    deterministic_share: float = 0.3  # temperature 0: may be cached, and shared
    streamed_share: float = 0.3
    max_tokens: int = 64
    timeout_s: float = 4.0  # then a client gives the try up, and closes its connection
    tries: int = 4  # the first, and three more with the same x-request-id
    again_s: float = 0.1  # after a try that timed out or broke
    refused_again_s: float = 0.25  # after a refusal, by those who do not obey retry-after
    obedient_share: float = 0.1  # of clients that wait as long as retry-after says,
    patience_s: float = 16.0  # unless that is later than so long after they first asked
    connections: int = 6_000  # open at a time; a try that gets none has failed


class Ask(Struct, frozen=True):
    """One request that somebody will make."""

    number: int
    due_s: float
    phase: str
    city: str
    tier: Tier
    tenant: str
    user: str
    question: int  # its rank; 0 is the hot one
    deterministic: bool
    streamed: bool
    obedient: bool


def tenant_names(population: Population) -> dict[Tier, tuple[str, ...]]:
    """The tenants of each tier."""
    return {
        part.tier: tuple(f"{part.tier}-{number}" for number in range(1, part.tenants + 1))
        for part in population.tiers
    }


def plan(
    phases: Sequence[Phase], cities: Sequence[Share], population: Population, seed: int
) -> Iterator[Ask]:
    """Every request of a run, in order; the same for the same seed."""
    rng = Random(seed)
    tenants = tenant_names(population)
    towns = Drawn([city.share for city in cities])
    tiers = Drawn([part.share for part in population.tiers])
    popular = Drawn(popularity(population))
    number = 0
    for phase in phases:
        length_s = phase.ends_s - phase.begins_s
        # As many as they are, at random moments: a Poisson process of which the sum is known.
        for at in sorted(rng.random() for _ in range(phase.requests)):
            even = population.baseline_even and phase.name == "baseline"
            index = rng.randrange(len(population.tiers)) if even else tiers.draw(rng)
            tier = population.tiers[index].tier
            yield Ask(
                number,
                phase.begins_s + at * length_s,
                phase.name,
                cities[towns.draw(rng)].name,
                tier,
                rng.choice(tenants[tier]),
                f"u{rng.randrange(population.users)}",
                popular.draw(rng),
                rng.random() < population.deterministic_share,
                rng.random() < population.streamed_share,
                rng.random() < population.obedient_share,
            )
            number += 1


def popularity(population: Population) -> list[float]:
    """How often each question is asked, by rank, up to a factor (Zipf)."""
    return [(rank + 1) ** -population.zipf for rank in range(population.questions)]


class Drawn:
    """Draws an index with given weights, in O(log n)."""

    def __init__(self, weights: Sequence[float]) -> None:
        self._sums = list(accumulate(weights))

    def draw(self, rng: Random) -> int:
        index = bisect_right(self._sums, rng.random() * self._sums[-1])
        return min(index, len(self._sums) - 1)


def question_text(rank: int) -> str:
    """What is asked, about 90 characters."""
    if rank == 0:
        return "What has happened in the strait today, who says so, and what will become of it now?"
    return f"Question {rank}: what is known about the news of today, and what does it mean for us?"


def next_try_s(
    population: Population,
    obedient: bool,
    refused: bool,
    retry_after_s: float | None,
    since_s: float = 0.0,
) -> float | None:
    """How long a client that first asked `since_s` ago waits before it sends the same request
    again. None: it gives up."""
    if not refused:
        return population.again_s
    if not obedient or retry_after_s is None:
        return population.refused_again_s
    wait_s = max(population.again_s, retry_after_s)
    return wait_s if since_s + wait_s <= population.patience_s else None
