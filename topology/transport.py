"""The transportation problem: demand to regions at least cost, none above its capacity. Pure.

A linear program of 10,000 demands and 30 regions has 300,000 variables, and a general solver
takes many seconds over it. But given the right price for a place in each full region, every
demand simply goes where cost and price are least, and only some dozens are torn between two
regions. So the thirty prices are found first, by Newton's method on the dual problem, smoothed
(each demand spreads over regions by softmax at a temperature, which falls; see Cuturi and Peyré,
"Semi-dual regularized optimal transport", 2018). Then the demands that are torn go into a small
linear program (HiGHS), and its prices are checked against every demand: whoever would be better
off elsewhere joins the program, until nobody would. Then prices and places satisfy complementary
slackness, which proves the optimum of the whole, not of the program alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csr_array

Floats = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.intp]]

# Temperatures, as shares of the highest and of the median cost; each is so much of the last one.
_WARMEST = 0.05
_COLDEST = 5e-4
_COOLING = 0.2
_SAMPLE = 1500  # demands, which stand for all at temperatures above `_SAMPLED` of the median
_SAMPLED = 0.02
_STEPS_MAX = 25  # of Newton's method at one temperature
_REACH = 5.0  # times the temperature: how far one of them goes at first
_STRIDE = 4.0  # times as far again, while that is better
_LEAST_STEP = 1e-4  # of one: shorter ones are not tried
_FITTED = 1e-3  # of the demand: loads this near to what they may be end the steps
_TORN = 6.0  # times the coldest temperature: how near the second choice is of one that is torn
_SLACK = 1e-9  # of the median cost: what counts as nothing
_ROUNDS_MAX = 60
_BLOCK = 256
_DIGITS = 9  # of a cost: where two differ by less, they are the same


class Transport(NamedTuple):
    """Demand `group[k]` sends `amount[k]` to region `region[k]`. `price` per unit and region."""

    group: Ints
    region: Ints
    amount: Floats
    price: Floats


def transport(cost: Floats, demand: Floats, capacity: Floats) -> Transport:
    """The cheapest way to send every demand somewhere.

    `cost`, regions x demands: per unit; infinite where the demand may not go. `demand` > 0 by
    demand, `capacity` >= 0 by region. Some region that everybody may go to must have infinite
    capacity: what fits nowhere else goes there. Raises `ArithmeticError` where the solver fails.
    """
    choice = cost.argmin(axis=0)
    load = np.bincount(choice, demand, len(capacity))
    if (load <= capacity).all():
        return Transport(np.arange(len(demand)), choice, demand, np.zeros(len(capacity)))
    median = float(np.median(cost[np.isfinite(cost)])) or 1.0
    price = _prices(cost, demand, capacity, median)
    return _settle(cost, demand, capacity, price, median)


def _prices(cost: Floats, demand: Floats, capacity: Floats, median: float) -> Floats:
    """Prices at which hardly any region is asked for more than it has."""
    price = np.zeros(len(capacity))
    temperature = _WARMEST * float(cost[np.isfinite(cost)].max())
    coldest = _COLDEST * median
    # A few demands for all: they find the prices nearly, at a fraction of the work.
    every = max(1, len(demand) // _SAMPLE)
    few = demand[::every] * (demand.sum() / demand[::every].sum())
    few_cost = np.ascontiguousarray(cost[:, ::every])
    while True:
        if every > 1 and temperature > _SAMPLED * median:
            price = _newton(few_cost, few, capacity, price, temperature)
        else:
            price = _newton(cost, demand, capacity, price, temperature)
        if temperature <= coldest:
            return price
        temperature = max(coldest, _COOLING * temperature)


def _newton(
    cost: Floats, demand: Floats, capacity: Floats, price: Floats, temperature: float
) -> Floats:
    """The prices that maximise the smoothed dual at one temperature, from near ones."""
    bounded = np.isfinite(capacity)
    room = np.where(bounded, capacity, 0.0)
    value, spread = _smoothed(cost, demand, room, price, temperature)
    for _ in range(_STEPS_MAX):
        weighted = spread * demand
        load = weighted.sum(axis=1)
        excess = np.where(bounded, load - capacity, 0.0)
        free = np.flatnonzero(bounded & ((price > 0) | (excess > 0)))
        if np.abs(excess[free]).sum() <= _FITTED * demand.sum():
            break
        bend = np.diag(load[free]) - _products(weighted[free], spread[free])
        bend[np.diag_indices(len(free))] += 1e-9 * demand.sum() + 1e-6 * load[free]
        step = np.zeros(len(price))
        # Farther off the softmax is flat, and Newton's step says nothing.
        reach = _REACH * temperature
        step[free] = np.clip(temperature * np.linalg.solve(bend, excess[free]), -reach, reach)
        climbed = _climb(cost, demand, room, price, step, temperature, value, reach)
        if climbed is None:
            break
        price, value, spread = climbed
    return price


def _climb(
    cost: Floats,
    demand: Floats,
    room: Floats,
    price: Floats,
    step: Floats,
    temperature: float,
    value: float,
    reach: float,
) -> tuple[Floats, float, Floats] | None:
    """Prices in the direction of `step` at which the dual is higher, with its value and spread;
    None: there are none.

    Where what fits ends between two tiers, the dual is nearly a plane from what it costs to shed
    the one to what it costs to shed the other, thousands of reaches wide. So a step that was cut
    short goes on for as long as the dual rises.
    """
    best: tuple[Floats, float, Floats] | None = None
    size = 1.0
    far = np.abs(step).max() >= reach
    while size > _LEAST_STEP:
        trial = np.maximum(price + size * step, 0.0)
        there, spread = _smoothed(cost, demand, room, trial, temperature)
        if there > value:
            best, value = (trial, there, spread), there
            if not far:
                break
            size *= _STRIDE
        elif best is not None:
            break
        else:
            size *= 0.3
    return best


def _smoothed(
    cost: Floats, demand: Floats, room: Floats, price: Floats, temperature: float
) -> tuple[float, Floats]:
    """The smoothed dual's value, and how each demand spreads over the regions."""
    total = cost + price[:, None]
    least = total.min(axis=0)
    spread = np.exp((least - total) / temperature)
    norm = spread.sum(axis=0)
    spread /= norm
    value = float((demand * (least - temperature * np.log(norm))).sum() - (price * room).sum())
    return value, spread


def _products(left: Floats, right: Floats) -> Floats:
    """`left @ right.T`, a block at a time: BLAS starts its threads for more than `_BLOCK`, and
    beside other work on the machine they wait for each other far longer than they save."""
    out = np.zeros((len(left), len(right)))
    for start in range(0, left.shape[1], _BLOCK):
        out += left[:, start : start + _BLOCK] @ right[:, start : start + _BLOCK].T
    return out


def _settle(
    cost: Floats, demand: Floats, capacity: Floats, price: Floats, median: float
) -> Transport:
    everyone = np.arange(len(demand))
    spare = int(np.flatnonzero(np.isinf(capacity))[-1])  # keeps the program solvable
    total = cost + price[:, None]
    open_to = total <= total.min(axis=0) + _TORN * _COLDEST * median  # ways for the program
    for _ in range(_ROUNDS_MAX):
        torn = open_to.sum(axis=0) > 1
        fixed = np.flatnonzero(~torn)
        choice = open_to[:, fixed].argmax(axis=0)
        left = capacity - np.bincount(choice, demand[fixed], len(capacity))
        if (left < 0).any():
            _loosen(open_to, total, demand, left, fixed, choice)
            continue
        groups = np.flatnonzero(torn)
        open_to[spare, groups] = True
        ways, amount, price, worth = _program(cost, demand, left, open_to, groups)
        total = cost + price[:, None]
        held = np.empty(len(demand))
        held[fixed] = total[choice, fixed]
        held[groups] = worth
        best = total.argmin(axis=0)
        better = (total[best, everyone] < held - _SLACK * median) & ~open_to[best, everyone]
        if not better.any():
            used = amount > 0
            return Transport(
                np.concatenate([fixed, ways[1][used]]),
                np.concatenate([choice, ways[0][used]]),
                np.concatenate([demand[fixed], amount[used]]),
                price,
            )
        open_to[best[better], everyone[better]] = True
    raise ArithmeticError(f"no optimum within {_ROUNDS_MAX} rounds")


def _loosen(
    open_to: Any, total: Floats, demand: Floats, left: Floats, fixed: Ints, choice: Ints
) -> None:
    """Give those fixed in regions that are too full by them a second choice, as few as will do."""
    for region in np.flatnonzero(left < 0):
        here = fixed[choice == region]
        others = total[:, here].copy()
        others[region] = np.inf
        second = others.argmin(axis=0)
        loss = others[second, np.arange(len(here))]
        order = np.argsort(loss - total[region, here])
        enough = int(np.searchsorted(np.cumsum(demand[here[order]]), -left[region])) + 1
        out = order[:enough]
        open_to[second[out], here[out]] = True


def _program(
    cost: Floats, demand: Floats, left: Floats, open_to: Any, groups: Ints
) -> tuple[tuple[Ints, Ints], Floats, Floats, Floats]:
    """Solve for `groups` alone, in what is `left`: ways, their amounts, prices, worth by group.

    Groups between whose ways the differences are the same (distances in whole milliseconds make
    many such) are one demand for the solver.
    """
    if not len(groups):
        return (groups, groups), np.zeros(0), np.zeros(len(left)), np.zeros(0)
    mask = open_to[:, groups]
    base = cost[mask.argmax(axis=0), groups]
    extra = np.where(mask, cost[:, groups] - base, np.inf)
    alike, first = _alike(extra)
    tokens = np.bincount(alike, demand[groups]).astype(float)
    region, row = np.nonzero(mask[:, first])
    ways = np.arange(len(row))
    ones = np.ones(len(row))
    bounded = np.isfinite(left)
    limited = np.flatnonzero(bounded[region])
    solved = linprog(
        extra[region, first[row]],
        A_ub=csr_array((ones[limited], (region[limited], limited)), (len(left), len(row))),
        b_ub=np.where(bounded, left, 1.0),
        A_eq=csr_array((ones, (row, ways)), (len(first), len(row))),
        b_eq=tokens,
        method="highs",
    )
    if not solved.success:
        raise ArithmeticError(f"HiGHS: {solved.message}")
    amount = np.maximum(np.asarray(solved.x), 0.0)
    amount *= (tokens / np.bincount(row, amount))[row]  # whole again, within rounding
    member, way, part = _divide(alike, demand[groups], row, amount)
    price = np.maximum(-np.asarray(solved.ineqlin.marginals), 0.0)
    worth = np.asarray(solved.eqlin.marginals)[alike] + base
    return (region[way], groups[member]), part, price, worth


def _alike(extra: Floats) -> tuple[Ints, Ints]:
    """For each column the number of its kind; for each kind the first column of it."""
    keys = np.ascontiguousarray(np.round(extra.T, _DIGITS)) + 0.0  # no negative zeros
    number: dict[bytes, int] = {}
    kinds = np.array([number.setdefault(key.tobytes(), len(number)) for key in keys])
    _, first = np.unique(kinds, return_index=True)
    return kinds, first


def _divide(alike: Ints, demand: Floats, row: Ints, amount: Floats) -> tuple[Ints, Ints, Floats]:
    """Give each kind's amounts to its members, one after the other, so that few are split:
    member, way, part."""
    used = np.flatnonzero(amount > 0)
    members = np.argsort(alike, kind="stable")
    ways = used[np.argsort(row[used], kind="stable")]
    member_ends, way_ends = np.cumsum(demand[members]), np.cumsum(amount[ways])
    ends = np.unique(np.concatenate([member_ends, way_ends]))
    part = np.diff(ends, prepend=0.0)
    middle = ends - part / 2
    member = members[np.minimum(np.searchsorted(member_ends, middle), len(members) - 1)]
    way = ways[np.minimum(np.searchsorted(way_ends, middle), len(ways) - 1)]
    whole = alike[member] == row[way]  # all but slivers that rounding makes
    return member[whole], way[whole], part[whole]
