"""What a run of the lab found: requests, drain, kill, totals; as JSON and as numbers."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct


class Outcome(Struct, frozen=True, kw_only=True):
    """One request as its client saw it. Times in ms; `status` 0 means no HTTP answer came."""

    city: str
    tenant: str
    dns_answer: tuple[str, ...]
    edge: str
    served_by: str  # cache | region | "" on failure
    region: str
    path: str
    status: int
    stream: bool
    ttft_ms: float
    total_ms: float
    prompt: str
    answer: str
    error: str = ""
    begun_s: float  # seconds since the story began
    phase: str  # when it began: steady | draining | drained | deposed | killed

    @property
    def failed(self) -> bool:
        return bool(self.error)


class Failover(Struct, frozen=True, kw_only=True):
    """What taking a region away cost its clients. Times count from the command or the kill.

    `in_effect_ms`: until the command returned, every node having acknowledged it; 0 for a kill.
    `requests_during`: in flight when it happened, or begun after it and before the next event.
    `served_there_after`: begun once it was in effect, and served by the region all the same.
    `first_served_elsewhere_ms`: until a client whose region it had been got its first token from
    another one.
    """

    region: str
    in_effect_ms: float
    requests_during: int
    failed: int
    served_there_after: int
    first_served_elsewhere_ms: float | None


class Takeover(Struct, frozen=True, kw_only=True):
    """What became of the control plane when the replica that directs was killed.

    `takeover_ms`: from the kill until another replica said that it directs.
    """

    killed: str
    successor: str
    takeover_ms: float


class Totals(Struct, frozen=True, kw_only=True):
    """Counts over the whole run; memory in MB by kind of process, its largest."""

    requests: int
    failed: int
    streamed: int
    from_cache: int
    cities: int
    edges: int
    by_region: dict[str, int]
    ttft_p50_ms: float
    ttft_max_ms: float
    memory_mb: dict[str, float]


class Report(Struct, frozen=True, kw_only=True):
    """The whole run. `engine` says when the answers were simulated."""

    engine: str
    requests: tuple[Outcome, ...]
    drain: Failover
    director: Takeover
    kill: Failover
    totals: Totals
    setup_s: float
    duration_s: float


def failover(
    region: str, at_s: float, in_effect_s: float, until_s: float, outcomes: Sequence[Outcome]
) -> Failover:
    """Sum up a failover: it happened `at_s` seconds into the story, was in effect at
    `in_effect_s`, and the next event came at `until_s`."""
    during = [o for o in outcomes if at_s <= o.begun_s < until_s or _in_flight(o, at_s)]
    home = _home_cities(region, at_s, outcomes)
    elsewhere = [
        (o.begun_s - at_s) * 1000 + o.ttft_ms
        for o in during
        if o.city in home and o.region != region and o.served_by == "region" and not o.failed
    ]
    late = [o for o in during if o.begun_s > in_effect_s and o.region == region and not o.failed]
    return Failover(
        region=region,
        in_effect_ms=round((in_effect_s - at_s) * 1000, 1),
        requests_during=len(during),
        failed=sum(o.failed for o in during),
        served_there_after=len(late),
        first_served_elsewhere_ms=min((round(e, 1) for e in elsewhere if e >= 0), default=None),
    )


def _in_flight(outcome: Outcome, at_s: float) -> bool:
    return outcome.begun_s <= at_s < outcome.begun_s + outcome.total_ms / 1000


def _home_cities(region: str, at_s: float, outcomes: Sequence[Outcome]) -> set[str]:
    """The cities that the region served before."""
    return {o.city for o in outcomes if o.region == region and o.begun_s < at_s}


def totals(outcomes: Sequence[Outcome], memory_mb: dict[str, float]) -> Totals:
    served = [o for o in outcomes if not o.failed]
    times = sorted(o.ttft_ms for o in served) or [0.0]
    by_region: dict[str, int] = {}
    for outcome in served:
        if outcome.served_by == "region":
            by_region[outcome.region] = by_region.get(outcome.region, 0) + 1
    return Totals(
        requests=len(outcomes),
        failed=len(outcomes) - len(served),
        streamed=sum(o.stream for o in outcomes),
        from_cache=sum(o.served_by == "cache" for o in served),
        cities=len({o.city for o in outcomes}),
        edges=len({o.edge for o in served}),
        by_region=by_region,
        ttft_p50_ms=times[len(times) // 2],
        ttft_max_ms=times[-1],
        memory_mb=memory_mb,
    )
