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
