"""Whether a region is up for everybody: a verdict from several vantage points. Pure.

A region goes down for all only when more than a quorum of the edges that report on it, and at
least two, cannot reach it, *and* the registry knows no healthy core of it, for `down_after_s`.
It is up again when a quorum reaches it and the registry does not object, for `up_after_s` times a
factor that doubles with each recent flap (in the manner of RFC 2439: a penalty with a half-life,
and a longest hold). A region that nobody has judged yet is up. One that was never seen alive (the
whole system is starting) comes up as quickly as it went down, and gets no penalty.

What counts as no evidence changes nothing: no edge that reports on a region, a registry that is
away (then nobody is newly declared down, and the edges alone can bring a region back).

Times are Unix seconds and may jump. Evidence is therefore counted in grains: no single step adds
more than a part of what a change needs, however far the clock leapt, and a step back adds nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import msgspec
from msgspec import Struct

from control_plane.directives.state import Verdict
from topology.policy import HealthPolicy

EDGES_MIN = 2  # that cannot reach a region, before it is down for others too
GRAINS = 5  # into which the time that a change needs is divided
_SLACK_S = 2.0  # that a step may be late: the director steps each second
_FORGIVEN = 0.01  # a penalty below this is none


class Votes(Struct, frozen=True):
    """Of the edges that report on a region: how many reach it, how many do not."""

    reach: int
    miss: int

    def say_down(self, quorum: float) -> bool:
        return self.miss >= EDGES_MIN and self.miss > quorum * (self.reach + self.miss)

    def say_up(self, quorum: float) -> bool:
        total = self.reach + self.miss
        if self.reach == 0 or self.say_down(quorum):
            return False
        return self.miss == 0 or self.reach > quorum * total


def advance(
    verdicts: Mapping[str, Verdict],
    seen: Mapping[str, Mapping[str, bool]],
    registered: Mapping[str, bool | None],
    policy: HealthPolicy,
    now_s: float,
) -> dict[str, Verdict]:
    """The verdict on each region of `registered`.

    `seen`: edge node ("edge/tokyo" or "edge/tokyo/0") -> region -> whether it reaches it. The
    workers of one edge have one vote: the edge reaches what any of them reaches. `registered`:
    region -> whether a healthy core is registered there; None: the registry has no say.
    """
    votes = count(seen, registered)
    return {
        region: _judge(verdicts.get(region), votes[region], well, policy, now_s)
        for region, well in registered.items()
    }


def count(seen: Mapping[str, Mapping[str, bool]], regions: Iterable[str]) -> dict[str, Votes]:
    """The votes on each of `regions`, one per edge."""
    views: dict[str, dict[str, bool]] = {region: {} for region in regions}
    for node, reached in seen.items():
        role, _, rest = node.partition("/")
        edge = rest.partition("/")[0]
        if role != "edge" or not edge:
            continue
        for region, reachable in reached.items():
            view = views.get(region)
            if view is not None:
                view[edge] = view.get(edge, False) or reachable
    return {
        region: Votes(sum(view.values()), len(view) - sum(view.values()))
        for region, view in views.items()
    }


def _judge(
    verdict: Verdict | None, votes: Votes, well: bool | None, policy: HealthPolicy, now_s: float
) -> Verdict:
    alive = votes.say_up(policy.quorum) or well is True
    if verdict is None:
        return Verdict(up=True, since_s=now_s, proven=alive)
    if verdict.since_s > now_s:  # the clock was set back: nothing of it lies in the future
        verdict = msgspec.structs.replace(verdict, since_s=now_s)
    if verdict.up and alive and not verdict.proven:
        verdict = msgspec.structs.replace(verdict, proven=True)
    if verdict.up:
        against = votes.say_down(policy.quorum) and well is False
    else:
        against = votes.say_up(policy.quorum) and well is not False
    hold_s = _hold_s(verdict, policy, now_s)
    if not against:
        return msgspec.structs.replace(verdict, doubt_s=0.0, doubt_at_s=0.0)
    held = _doubted(verdict, hold_s, now_s)
    if held.doubt_s + _credit_s(held, hold_s, now_s) < hold_s:
        return held
    return _turned(verdict, votes, well, policy, now_s)


def _hold_s(verdict: Verdict, policy: HealthPolicy, now_s: float) -> float:
    """How long evidence must speak against the verdict."""
    if verdict.up or not verdict.proven:
        return policy.down_after_s
    return hold_down_s(penalty_at(verdict, policy, now_s), policy)


def _doubted(verdict: Verdict, hold_s: float, now_s: float) -> Verdict:
    """The verdict with the time counted that evidence has spoken against it, in whole grains:
    in between it stays the same value, and is not written again each second."""
    if verdict.doubt_at_s == 0.0:
        return msgspec.structs.replace(verdict, doubt_s=0.0, doubt_at_s=now_s)
    gap_s = now_s - verdict.doubt_at_s
    if 0.0 <= gap_s < hold_s / GRAINS:
        return verdict
    doubt_s = verdict.doubt_s + _credit_s(verdict, hold_s, now_s)
    return msgspec.structs.replace(verdict, doubt_s=doubt_s, doubt_at_s=now_s)


def _credit_s(verdict: Verdict, hold_s: float, now_s: float) -> float:
    """What the time since it was last counted is worth."""
    most_s = hold_s / GRAINS + min(_SLACK_S, hold_s / 2)
    return min(max(0.0, now_s - verdict.doubt_at_s), most_s)


def _turned(
    verdict: Verdict, votes: Votes, well: bool | None, policy: HealthPolicy, now_s: float
) -> Verdict:
    penalty = penalty_at(verdict, policy, now_s)
    if verdict.up and verdict.proven:
        penalty = min(penalty + 1.0, _penalty_max(policy))
    return Verdict(
        up=not verdict.up,
        since_s=now_s,
        why=_why(votes, well),
        flaps=penalty,
        proven=verdict.proven or not verdict.up,
    )


def penalty_at(verdict: Verdict, policy: HealthPolicy, now_s: float) -> float:
    """The penalty for past flaps: each time down adds one, and each half-life halves it."""
    age_s = max(0.0, now_s - verdict.since_s)
    penalty = verdict.flaps * math.exp2(-age_s / policy.flap_half_life_s)
    return penalty if penalty >= _FORGIVEN else 0.0


def hold_down_s(penalty: float, policy: HealthPolicy) -> float:
    """How long a region must be well before it is up again."""
    factor = math.exp2(max(0.0, min(penalty, _penalty_max(policy)) - 1.0))
    return max(policy.up_after_s, min(policy.up_after_s * factor, policy.flap_longest_hold_s))


def _penalty_max(policy: HealthPolicy) -> float:
    """Beyond it the hold grows no more; nor does the penalty, or it would be forgiven too late."""
    return 1.0 + max(0.0, math.log2(policy.flap_longest_hold_s / policy.up_after_s))


def _why(votes: Votes, well: bool | None) -> str:
    edges = votes.reach + votes.miss
    cores = {True: "a healthy core is registered", False: "no healthy core is registered"}
    registry = cores[well] if well is not None else "the registry is away"
    return f"{votes.reach} of {edges} edges reach it; {registry}"
