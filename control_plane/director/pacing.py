"""Paced overrides: how far each goes this second, and when it waits for those who receive. Pure.

A drain moves requests to other regions, and a restore moves them back: whoever receives them must
stay well. The moment a receiver suffers, the override stands still where it is; it goes on once
all have been well for a while. It never goes back by itself: that is for an operator to say.

A region that is drained whole receives nothing and is not asked. So a region that is down, and
that nobody wants to wait for, is to be failed over first.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from msgspec import Struct

from control_plane.directives.state import Drain, Outlook, State
from topology.demand import DemandClass
from topology.policy import PacingPolicy
from topology.resources import OverrideSpec
from topology.routing import active_override
from topology.snapshot import Snapshot

# The most that one step makes up for. The director steps each second; after a pause of its own,
# a change of director or a clock that jumped, an override goes on from where it stands.
LONGEST_STEP_S = 2.0
# A first token that comes later by less than this is noise, whatever share of the baseline it is.
LATENCY_SLACK_MS = 50.0


class Pace(Struct, frozen=True):
    """`finished`: Overrides whose paced restore has reached 0%, and their revisions: they may go,
    unless somebody has replaced them since."""

    drains: dict[str, Drain]  # by region; what nodes are to be told
    finished: dict[str, int] = {}
    notes: tuple[str, ...] = ()  # for people: which of them wait, and why


class _Paced(Struct, frozen=True):
    """The newest paced override of a region."""

    name: str
    spec: OverrideSpec
    revision: int


def advance(snapshot: Snapshot, state: State, outlook: Outlook, now_s: float) -> Pace:
    """Where every paced override stands at `now_s` (Unix time).

    `state` is of the second before; of its drains, those whose override was removed, has expired
    or is paced no more are left out. Nothing moves faster than its override asks, in spite of a
    clock that jumps.
    """
    drains: dict[str, Drain] = {}
    finished: dict[str, int] = {}
    notes: list[str] = []
    for region, paced in sorted(_paced(snapshot, now_s).items()):
        held = state.drains.get(region)
        if held is not None and _applied_again(held, paced):
            held = msgspec.structs.replace(held, override_revision=paced.revision)
        elif held is None or held.override_revision != paced.revision:
            held = _begun(region, paced, now_s)
        receivers = _receivers(snapshot, outlook, region, paced.spec, now_s)
        held = _with_baseline(held, outlook, receivers)
        reason = _suffering(snapshot.policy.pacing, state, outlook, receivers, held)
        drain = _step(held, paced.spec, reason, snapshot.policy.pacing, now_s)
        drains[region] = drain
        if drain.paused:
            notes.append(f"{region} stands at {drain.percent:.0f}%: {drain.paused}")
        if paced.spec.percent == 0.0 and drain.percent == 0.0:
            finished[paced.name] = paced.revision
    return Pace(drains, finished, tuple(notes))


def _paced(snapshot: Snapshot, now_s: float) -> dict[str, _Paced]:
    found: dict[str, _Paced] = {}
    for name, resource in snapshot.of_kind("Override").items():
        spec = resource.spec
        if not isinstance(spec, OverrideSpec) or spec.over_s <= 0:
            continue
        if spec.expires_s is not None and spec.expires_s <= now_s:
            continue
        other = found.get(spec.region)
        if other is None or (other.revision, other.name) < (resource.revision, name):
            found[spec.region] = _Paced(name, spec, resource.revision)
    return found


def _applied_again(held: Drain, paced: _Paced) -> bool:
    """Whether this is the override that was under way, at a lower revision than before: the store
    was wiped and everything applied again. It goes on from where it stands."""
    return paced.revision < held.override_revision and paced.spec.percent == held.target


def _begun(region: str, paced: _Paced, now_s: float) -> Drain:
    return Drain(
        region=region,
        percent=paced.spec.from_percent,
        target=paced.spec.percent,
        step_at_s=now_s,
        override_revision=paced.revision,
    )


def _receivers(
    snapshot: Snapshot, outlook: Outlook, region: str, spec: OverrideSpec, now_s: float
) -> tuple[str, ...]:
    """Who gets the requests that move: the region itself where they return, else those that may
    serve what it serves; those that its demand really has, as far as load is reported."""
    if spec.percent < spec.from_percent:
        return (region,)
    sets = [
        DemandClass.parse(name).regions for name, by in outlook.flows.items() if any(by.values())
    ]
    together = [regions for regions in sets if region in regions]
    if not together:
        together = [route.regions for route in snapshot.routes.values() if region in route.regions]
    others = {name for regions in together for name in regions} - {region}
    return tuple(
        sorted(n for n in others if n in snapshot.regions and not _closed(snapshot, n, now_s))
    )


def _closed(snapshot: Snapshot, region: str, now_s: float) -> bool:
    override = active_override(snapshot, region, now_s)
    return override is not None and override.percent >= 100.0


def _with_baseline(held: Drain, outlook: Outlook, receivers: tuple[str, ...]) -> Drain:
    """With the latency of each receiver as it was when it was first seen."""
    new = {
        region: outlook.first_token_ms[region]
        for region in receivers
        if region in outlook.first_token_ms and region not in held.baseline_ms
    }
    return msgspec.structs.replace(held, baseline_ms=held.baseline_ms | new) if new else held


def _suffering(
    policy: PacingPolicy, state: State, outlook: Outlook, receivers: tuple[str, ...], held: Drain
) -> str:
    """Everything that speaks against going on; empty where nothing does."""
    return "; ".join(
        reason
        for region in receivers
        for reason in _complaints(policy, state, outlook, region, held.baseline_ms.get(region))
    )


def _complaints(
    policy: PacingPolicy, state: State, outlook: Outlook, region: str, baseline_ms: float | None
) -> Iterator[str]:
    verdict = state.verdicts.get(region)
    if verdict is not None and not verdict.up:
        yield f"{region} is down" + (f" ({verdict.why})" if verdict.why else "")
        return
    load = outlook.utilisation.get(region)
    if load is None:
        yield f"nothing is known of the load of {region}"
    elif load > policy.utilisation_max:
        yield f"{region} is at {load:.0%} of its capacity, above {policy.utilisation_max:.0%}"
    errors = outlook.error_rate.get(region, 0.0)
    if errors > policy.error_rate_max:
        yield f"{errors:.1%} of the requests to {region} fail, above {policy.error_rate_max:.1%}"
    first_ms = outlook.first_token_ms.get(region)
    if first_ms is None or baseline_ms is None:
        return
    limit_ms = max(
        baseline_ms * (1.0 + policy.latency_increase_max), baseline_ms + LATENCY_SLACK_MS
    )
    if first_ms > limit_ms:
        yield (
            f"the first token from {region} takes {first_ms:.0f} ms, above {limit_ms:.0f} ms "
            f"({baseline_ms:.0f} ms at the start)"
        )


def _step(
    held: Drain, spec: OverrideSpec, reason: str, policy: PacingPolicy, now_s: float
) -> Drain:
    """The drain a step further, or waiting."""
    if held.percent == spec.percent:
        return msgspec.structs.replace(held, paused="", well_since_s=0.0)
    if reason:
        return msgspec.structs.replace(held, paused=reason, well_since_s=0.0)
    if held.paused:
        since_s = held.well_since_s
        if not 0.0 < since_s <= now_s:  # it begins, or the clock went back
            since_s = now_s
        if now_s - since_s < policy.resume_after_s:
            paused = f"well again; goes on after {policy.resume_after_s:g} s without trouble"
            return msgspec.structs.replace(held, paused=paused, well_since_s=since_s)
        return msgspec.structs.replace(held, paused="", well_since_s=0.0, step_at_s=now_s)
    elapsed_s = min(max(now_s - held.step_at_s, 0.0), LONGEST_STEP_S)
    reach = abs(spec.percent - spec.from_percent) * min(elapsed_s / spec.over_s, 1.0)
    if spec.percent >= held.percent:
        percent = min(held.percent + reach, spec.percent)
    else:
        percent = max(held.percent - reach, spec.percent)
    return msgspec.structs.replace(held, percent=percent, step_at_s=now_s)
