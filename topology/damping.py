"""From the shares that edges have to those that would be best, without haste or to and fro. Pure.

A move must be worth it: its requests must win `gain_min_ms`, and `gain_min_share` of what they
took before; or the region that they leave must be too full. No more than `move_per_step` of a
class moves in a second. What leaves a region that may not have it any more leaves at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from msgspec import Struct

from topology.assignment import Costs, Demand, Shares, by_order, class_cost
from topology.demand import DemandClass
from topology.policy import DirectorPolicy

# A region is too full above this much of what it may be given. Demand that rises and falls by
# less moves nobody to and fro.
TOO_FULL = 1.1

# What is shed is told in whole percents, and only when it differs by some from what was told:
# edges go by the proportions of shares, and refuse nothing for its sake.
SERVED_DIGITS = 2
SERVED_SLACK = 0.05

_NOTHING = 1e-6
_LEAST_MOVE = 0.01  # of a class: less is not worth telling an edge, unless it ends the matter

Spread = dict[str, float]  # region -> share


class _Case(Struct):
    """One class at one edge. All spreads sum to 1, or are empty."""

    edge: str
    text: str
    cls: DemandClass
    line: Mapping[str, float]
    tokens: float
    plain: Spread  # where requests go if the edge is told nothing
    wanted: Spread
    now: Spread
    moves: Mapping[str, float] = {}  # what still should leave where

    def gains(self, policy: DirectorPolicy) -> bool:
        """Whether what moves wins enough."""
        moved = sum(self.moves.values())
        before = sum(p * class_cost(self.cls, self.line, r) for r, p in self.moves.items())
        after = sum(p * class_cost(self.cls, self.line, r) for r, p in self.arrivals().items())
        won = (before - after) / moved
        return won >= policy.gain_min_ms and won >= policy.gain_min_share * before / moved

    def arrivals(self) -> Spread:
        return {
            r: p - self.now.get(r, 0.0) for r, p in self.wanted.items() if _over(p, self.now, r)
        }


def advance_shares(
    held: Shares,
    wanted: Shares,
    demand: Demand,
    cost_ms: Costs,
    capacity: Mapping[str, float],
    policy: DirectorPolicy,
    limits: Mapping[str, float] | None = None,
    step_s: float = 1.0,
) -> Shares:
    """The shares for the next second, of the classes for which they differ from plain order.

    `held` are those of the last second; `wanted` those of an `Assignment`, for all demand;
    `capacity` and `limits` as `assign` has them. What an edge sheds is taken from `wanted`.
    """
    cases = list(_cases(held, wanted, demand, cost_ms, capacity, limits or {}))
    load: dict[str, float] = dict.fromkeys(capacity, 0.0)
    for case in cases:
        for region, part in case.now.items():
            load[region] += part * case.tokens
    torn = [case for case in cases if case.moves]
    eager = [case.gains(policy) for case in torn]
    relief = _relief(load, capacity, (c for c, e in zip(torn, eager, strict=True) if not e))
    for case, gains in zip(torn, eager, strict=True):
        out = case.moves if gains else {r: p * relief.get(r, 0.0) for r, p in case.moves.items()}
        _move(case, out, policy.move_per_step * step_s)
    shares: Shares = {}
    for case in cases:
        if _differs(case.now, case.plain):
            served = round(sum(wanted[case.edge][case.text].values()), SERVED_DIGITS)
            spread = {r: part * served for r, part in sorted(case.now.items()) if part > _NOTHING}
            old = held.get(case.edge, {}).get(case.text, {})
            shares.setdefault(case.edge, {})[case.text] = old if _is_same(old, spread) else spread
    return shares


def _cases(
    held: Shares,
    wanted: Shares,
    demand: Demand,
    cost_ms: Costs,
    capacity: Mapping[str, float],
    limits: Mapping[str, float],
) -> Iterator[_Case]:
    parsed: dict[str, DemandClass] = {}
    for edge, classes in wanted.items():
        line = cost_ms.get(edge, {})
        for text, spread in classes.items():
            cls = parsed.get(text) or parsed.setdefault(text, DemandClass.parse(text))
            target = _whole(spread)
            if not target:
                continue  # no region has room for any of it
            plain = _whole(by_order(cls, line, capacity, limits))
            now = _whole(held.get(edge, {}).get(text, {})) or plain
            now = _forced(cls, now, target, capacity, limits)
            case = _Case(edge, text, cls, line, demand[edge][text], plain, target, now)
            leaving = {r: p - target.get(r, 0.0) for r, p in now.items() if _over(p, target, r)}
            if sum(leaving.values()) > (_LEAST_MOVE if _differs(target, plain) else 0.0):
                case.moves = leaving
            yield case


def _forced(
    cls: DemandClass,
    now: Spread,
    target: Spread,
    capacity: Mapping[str, float],
    limits: Mapping[str, float],
) -> Spread:
    """`now`, with what a region may not have any more where it is wanted."""
    kept = {
        region: min(part, limits.get(region, 1.0))
        for region, part in now.items()
        if region in cls.regions and region in capacity
    }
    excess = 1.0 - sum(kept.values())
    if excess <= _NOTHING:
        return now
    room = {r: p - kept.get(r, 0.0) for r, p in target.items() if _over(p, kept, r)}
    total = sum(room.values())
    if total <= 0.0:
        return dict(target)
    for region, part in room.items():
        kept[region] = kept.get(region, 0.0) + excess * part / total
    return {region: part for region, part in kept.items() if part > 0.0}


def _relief(
    load: Mapping[str, float], capacity: Mapping[str, float], cases: Iterator[_Case]
) -> dict[str, float]:
    """Region -> which part of the moves away from it that win nothing is needed all the same."""
    excess = {r: load[r] - c for r, c in capacity.items() if load[r] > c * TOO_FULL}
    leaving = dict.fromkeys(excess, 0.0)
    for case in cases:
        for region in case.moves.keys() & excess.keys():
            leaving[region] += case.moves[region] * case.tokens
    return {r: min(1.0, excess[r] / leaving[r]) for r in excess if leaving[r] > 0.0}


def _move(case: _Case, out: Mapping[str, float], most: float) -> None:
    """Let `out` leave, at most `most` of the class, to where it is wanted."""
    total = sum(out.values())
    if total <= _NOTHING:
        return
    part = min(total, most)
    arriving = case.arrivals()
    into = sum(arriving.values())
    now = dict(case.now)
    for region, share in out.items():
        now[region] -= share * part / total
    for region, share in arriving.items():
        now[region] = now.get(region, 0.0) + share * part / into
    case.now = {region: share for region, share in now.items() if share > _NOTHING}


def _over(part: float, other: Mapping[str, float], region: str) -> bool:
    return part > other.get(region, 0.0) + _NOTHING


def _differs(one: Spread, other: Spread) -> bool:
    return any(abs(one.get(r, 0.0) - other.get(r, 0.0)) > 1e-3 for r in one.keys() | other.keys())


def _is_same(one: Spread, other: Spread) -> bool:
    """In the same proportions but for rounding, and as a whole but for `SERVED_SLACK`."""
    if one.keys() != other.keys() or abs(sum(one.values()) - sum(other.values())) > SERVED_SLACK:
        return False
    one, other = _whole(one), _whole(other)
    return all(abs(one[r] - other[r]) < _NOTHING for r in one)


def _whole(spread: Mapping[str, float]) -> Spread:
    total = sum(spread.values())
    return {r: part / total for r, part in spread.items()} if total > _NOTHING else {}
