"""The resource `Policy`: what holds everywhere, by the part of the system that it is about."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from topology.fields import Percent, Seconds, Selector, Share, Spec


class RolloutPolicy(Spec, frozen=True):
    """How a change reaches the nodes: some first, then more, back by itself when it harms."""

    canaries: tuple[Selector, ...] = ()  # edges by name that are always among the first
    canary_percent: Percent = 10.0  # of all nodes, drawn anew for each change
    canary_hold_s: Seconds = 60.0  # how long the first have it alone
    steps: Annotated[tuple[Percent, ...], Meta(max_length=20)] = (25.0, 50.0, 100.0)
    step_hold_s: Seconds = 15.0
    error_rate_increase: Share = 0.02  # of requests: what is too much against the other nodes
    requests_min: Annotated[int, Meta(ge=1)] = 20  # below it no error rate is believed


class HealthPolicy(Spec, frozen=True):
    """When a region counts as down for everybody. Slow to believe in health, slower after flaps."""

    quorum: Share = 0.5  # more than this share of the edges that report must say so
    down_after_s: Seconds = 3.0
    up_after_s: Seconds = 15.0
    flap_half_life_s: Seconds = 300.0  # how fast past flaps are forgiven
    flap_longest_hold_s: Seconds = 600.0  # however often it flapped


class DirectorPolicy(Spec, frozen=True):
    """How the director spreads demand over regions."""

    target_utilisation: Annotated[float, Meta(gt=0, le=1)] = 0.85  # of a region's capacity
    move_per_step: Annotated[float, Meta(gt=0, le=1)] = 0.1  # of an edge's demand, per second
    gain_min_ms: Annotated[float, Meta(ge=0)] = 10.0  # a move must win this much,
    gain_min_share: Share = 0.1  # and this share of what it was; or the old place is too full


class PacingPolicy(Spec, frozen=True):
    """When a paced drain waits for the regions that receive what it moves."""

    utilisation_max: Annotated[float, Meta(gt=0)] = 0.9
    error_rate_max: Share = 0.02
    latency_increase_max: Annotated[float, Meta(ge=0)] = 0.5  # against the start of the drain
    resume_after_s: Seconds = 5.0  # how long all must have been well again


class StalenessPolicy(Spec, frozen=True):
    """What a node does when nobody has confirmed its configuration for `limit_s`.

    `leave`: it reports itself not ready, so that geo-DNS sends clients elsewhere, and serves
    whoever still comes. `refuse`: it also answers new requests with 503.
    """

    limit_s: Seconds | None = None  # none: it serves on for as long as it takes
    action: Literal["leave", "refuse"] = "leave"


class QuotaPolicy(Spec, frozen=True):
    """How a tenant's limit is split among the edges."""

    floor_share: Share = 0.5  # of the limit: split evenly, each edge's own whatever happens
    hold_s: Seconds = 3_600.0  # how long an edge that hears from nobody keeps what is above it
    newcomer_share: Share = 0.02  # of the limit: for an edge that was never given anything


class PathPolicy(Spec, frozen=True):
    """Which way an edge goes to a region: straight, or through one other region."""

    relays_per_region: Annotated[int, Meta(ge=0, le=8)] = 2  # ways kept ready; 0: straight alone
    better_by_ms: Annotated[float, Meta(ge=0)] = 10.0  # what another way must win,
    better_by_share: Annotated[float, Meta(ge=0, lt=1)] = 0.33  # and this share; or the old is dead
    failback_s: Seconds = 5.0  # how long a way that was dead must live before it is preferred
    relay_ms: Annotated[float, Meta(ge=0)] = 5.0  # that a relay counts for, beside its distance


class RetryPolicy(Spec, frozen=True):
    """What may be sent again, and twice. One budget of each edge worker pays for both."""

    budget_share: Share = 0.1  # of recent requests
    budget_min_per_s: Annotated[float, Meta(ge=0)] = 3.0
    hedge: bool = True  # VIP requests may be sent a second time, another way, when nothing comes


class TierPolicy(Spec, frozen=True):
    """What requests of one tier may take while others want it too."""

    share: Annotated[float, Meta(gt=0, le=1)] = 1.0  # of what a region takes at once, at most
    wait_ms: Annotated[float, Meta(ge=0, le=60_000)] = 1_000.0  # for room, at an edge, at most


class TiersPolicy(Spec, frozen=True):
    """By `TenantSpec.tier`."""

    vip: TierPolicy = TierPolicy(share=1.0, wait_ms=2_000.0)
    standard: TierPolicy = TierPolicy(share=0.9, wait_ms=500.0)
    batch: TierPolicy = TierPolicy(share=0.7, wait_ms=1_000.0)


class OverloadPolicy(Spec, frozen=True):
    """What edges and regions do when more is asked than can be answered.

    `protect: false` turns all of it off, deadlines and cancelling too: for comparison alone.
    """

    protect: bool = True
    queue_target_ms: Annotated[float, Meta(gt=0)] = 250.0  # of waiting in a region, aimed at
    concurrency_min: Annotated[int, Meta(ge=1)] = 4  # requests in a region, of one edge worker
    concurrency_max: Annotated[int, Meta(ge=1)] = 4_096
    waiting_max: Annotated[int, Meta(ge=0, le=100_000)] = 1_024  # requests, at one edge worker
    throttle_k: Annotated[float, Meta(ge=1)] = 2.0  # requests sent for each that is accepted
    throttle_window_s: Annotated[float, Meta(ge=1, le=600)] = 30.0
    user_window_s: Annotated[float, Meta(ge=1, le=86_400)] = 300.0  # a user fares alike so long
    tiers: TiersPolicy = TiersPolicy()


class OutlierPolicy(Spec, frozen=True):
    """When a region, or one of its cores, that keeps failing is left alone, and for how long."""

    consecutive_errors: Annotated[int, Meta(ge=1)] = 5
    interval_s: Annotated[float, Meta(gt=0)] = 10.0  # errors further apart are not consecutive
    hold_s: Annotated[float, Meta(gt=0)] = 30.0  # times how often it was left alone lately
    hold_max_s: Annotated[float, Meta(gt=0)] = 300.0
    panic_share: Share = 0.5  # left alone at most; where more would be, all are asked
    slow_start_s: Annotated[float, Meta(ge=0)] = 10.0  # until one that returns has its full part


class CachePolicy(Spec, frozen=True):
    """Answers that are kept. `PolicySpec.cache_max_bytes` bounds those in a worker's memory."""

    coalesce: bool = True  # identical requests under way share one answer
    linger_s: Annotated[float, Meta(ge=0, le=60)] = 2.0  # an answer nobody waits for goes on
    tenant_share: Annotated[float, Meta(gt=0, le=1)] = 0.5  # of a cache that one tenant may fill
    disk_max_bytes: Annotated[int, Meta(ge=0)] = 2**30  # of one edge, for all its workers; 0: none
    regional_max_bytes: Annotated[int, Meta(ge=0)] = 256 * 2**20  # of one core; 0: none
    revalidate_s: Annotated[float, Meta(ge=0)] = 30.0  # past its end it is given, and asked anew
    stale_s: Annotated[float, Meta(ge=0)] = 3_600.0  # past its end it is given when all is full
    negative_ttl_s: Annotated[float, Meta(ge=0, le=60)] = 2.0  # a request that can only fail
    epoch: Annotated[int, Meta(ge=0)] = 0  # with another number, everything kept is forgotten


class RungPolicy(Spec, frozen=True):
    """One step of the degradation ladder, for requests of the tiers that it names.

    Requests begin at it once the pressure was `enter` or more for `enter_s`, and above it again
    once it was below `leave` for `leave_s`. What pressure is: docs/ladder.md.
    """

    quality: Literal[
        "full", "other-region", "queued", "quantised", "edge-model", "stale", "refused"
    ]
    enter: Annotated[float, Meta(ge=0)] = 0.0
    leave: Annotated[float, Meta(ge=0)] = 0.0
    enter_s: Annotated[float, Meta(ge=0)] = 0.0
    leave_s: Annotated[float, Meta(ge=0)] = 5.0
    tiers: tuple[Literal["vip", "standard", "batch"], ...] = ("vip", "standard", "batch")


# Top first. Whoever cannot be served at one step goes down to the next.
LADDER = (
    RungPolicy("full"),
    RungPolicy("other-region"),
    RungPolicy("queued"),
    RungPolicy("quantised", enter=0.5, leave=0.25, enter_s=0.5),
    RungPolicy("edge-model", enter=0.8, leave=0.4, enter_s=0.5),
    RungPolicy("stale", enter=0.8, leave=0.4, enter_s=0.5),
    RungPolicy("refused", enter=1.0, leave=0.5, enter_s=0.5, leave_s=1.0),
)


class PolicySpec(Spec, frozen=True):
    """What holds everywhere unless something narrower says otherwise. One, named `default`."""

    cache_max_bytes: Annotated[int, Meta(ge=0)] = 64 * 2**20  # per edge worker
    request_max_bytes: Annotated[int, Meta(ge=1024)] = 2 * 2**20
    attempts: Annotated[int, Meta(ge=1, le=3)] = 3  # regions tried for one request, at most
    first_token_timeout_ms: Annotated[int, Meta(gt=0)] = 20_000
    rollout: RolloutPolicy | None = None  # none: a change reaches all nodes at once
    health: HealthPolicy = HealthPolicy()
    director: DirectorPolicy = DirectorPolicy()
    pacing: PacingPolicy = PacingPolicy()
    staleness: StalenessPolicy = StalenessPolicy()
    quota: QuotaPolicy = QuotaPolicy()
    paths: PathPolicy = PathPolicy()
    retries: RetryPolicy = RetryPolicy()
    overload: OverloadPolicy = OverloadPolicy()
    outliers: OutlierPolicy = OutlierPolicy()
    cache: CachePolicy = CachePolicy()
    ladder: Annotated[tuple[RungPolicy, ...], Meta(max_length=16)] = LADDER
