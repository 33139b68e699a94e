"""What `tradewind storm` found, as JSON; and what it must have found."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from lab.storm.cpu import Spent
from lab.storm.event import Event, Phase, Population
from lab.storm.figures import Second, TierFigures
from lab.storm.stage import Engine

VIP_SUCCESS = 0.9999
VIP_SLOWER = 2.0  # p99 against the unloaded one
GOODPUT = 0.95  # of the measured capacity
AMPLIFICATION = 1.1
RECOVERY_S = 2.0
LAG_MS = 50.0  # p99; a population later than that is no open loop
CPU_BUSY = 0.9  # of all CPUs at the peak


class Run(Struct, frozen=True, kw_only=True):
    """One run of the event: protected, unprotected, or through a peer.

    `amplification`: requests that reached cores, by the cores' own counters, for each distinct
    request of a client that is known to have been sent upstream, by what its client saw.
    `edge_amplification`: attempts of edges for each request that they sent upstream first.
    """

    name: str
    settings: str  # of a peer
    capacity_rps: float
    capacity_at_peak_rps: float  # less what was killed
    offered_peak_rps: float  # distinct requests
    tries_peak_rps: float  # repeats included
    goodput_peak_rps: float
    goodput_ratio_at_peak: float
    distinct_ratio_at_peak: float  # an answer that several clients share counted once
    answers_ratio_at_peak: float  # with what caches gave
    vip_success: float
    vip_p99_ms: float
    vip_p99_unloaded_ms: float
    amplification: float
    edge_amplification: float | None
    recovery_s: float | None  # of the slowest tier; None: not before the event was over
    reached_cores: int
    sent_upstream: int
    finished_by_cores: int  # whole answers, whether anybody waited or not
    wasted_share: float  # of those, that nobody got in time
    tiers: dict[str, TierFigures]
    errors: dict[str, int]  # why requests failed in the end
    qualities: dict[str, int]
    killed: str  # at the peak
    wrong_answers: int
    connections_max: int
    lag_p99_ms: float
    lag_max_ms: float
    population_cpu_s: float
    cpu_at_peak: Spent
    warnings: tuple[str, ...]
    over_time: tuple[Second, ...]


class Step(Struct, frozen=True, kw_only=True):
    """One load of the sweep."""

    times: float  # the normal load
    offered_rps: float
    of_capacity: float
    goodput_rps: float
    goodput_ratio: float  # of the capacity; where less is asked, the share that was answered
    vip_success: float
    vip_p99_ms: float


class Sweep(Struct, frozen=True, kw_only=True):
    """Goodput as the load rises."""

    capacity_rps: float
    steps: tuple[Step, ...]


class Report(Struct, frozen=True, kw_only=True):
    """Everything."""

    engine: str
    seed: int
    cores: int
    slots_each: int
    nominal_rps: float
    simulated: Engine | None
    event: Event
    population: Population
    phases: tuple[Phase, ...]
    runs: dict[str, Run]
    sweep: Sweep | None = None
    left_out: dict[str, str] = {}  # peers that could not be had or did not come up, and why
    cpus: int
    duration_s: float


class Bound(Struct, frozen=True):
    """One thing that a protected run must show."""

    what: str
    wanted: str
    found: str
    met: bool


def bounds(run: Run) -> tuple[Bound, ...]:
    """What the protected run is held to."""
    slower = run.vip_p99_ms / run.vip_p99_unloaded_ms if run.vip_p99_unloaded_ms > 0 else -1.0
    recovery = run.recovery_s
    return (
        Bound(
            "VIP requests answered",
            f"at least {VIP_SUCCESS:.2%}",
            f"{run.vip_success:.2%}",
            run.vip_success >= VIP_SUCCESS,
        ),
        Bound(
            "VIP p99, against unloaded",
            f"at most {VIP_SLOWER:g} times",
            f"{slower:.2f} times ({run.vip_p99_ms:.0f} / {run.vip_p99_unloaded_ms:.0f} ms)",
            0 < slower <= VIP_SLOWER,
        ),
        Bound(
            "goodput at the peak, of capacity",
            f"at least {GOODPUT:.0%}",
            f"{run.goodput_ratio_at_peak:.1%}",
            run.goodput_ratio_at_peak >= GOODPUT,
        ),
        Bound(
            "requests to cores for each request",
            f"at most {AMPLIFICATION:g}",
            f"{run.amplification:.3f}",
            run.amplification <= AMPLIFICATION,
        ),
        Bound(
            "recovery after the peak",
            f"within {RECOVERY_S:g} s",
            "not before the end" if recovery is None else f"{recovery:.1f} s",
            recovery is not None and recovery <= RECOVERY_S,
        ),
        Bound(
            "wrong answers", "none", str(run.wrong_answers), run.wrong_answers == 0
        ),
    )  # fmt: skip


def met(run: Run) -> bool:
    return all(bound.met for bound in bounds(run))


def slowest(recoveries: Sequence[float | None]) -> float | None:
    """None as soon as one never came."""
    known = [one for one in recoveries if one is not None]
    return max(known, default=0.0) if len(known) == len(recoveries) else None
