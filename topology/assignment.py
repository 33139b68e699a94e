"""Demand to region shares: least total latency, no region above what it can take. Pure.

A demand class says where its requests may go and who yields to whom; a region's `limit` is what
an override leaves of it. What fits nowhere is shed, of the lowest tier first: nothing of a
higher tier is shed while a lower one has a place that it could use.

Prices explain the outcome. Where a region is full, `Assignment.prices` says what one more place
in it is worth, in ms; each edge goes where distance and price together are least.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import NamedTuple

import numpy as np
from msgspec import Struct

from topology.demand import DemandClass
from topology.routing import UNKNOWN_RTT_MS
from topology.transport import Floats, Ints, transport

TIERS = ("batch", "standard", "vip")  # who yields first
# What it costs an ordered class to go one place down its list. Nearly all distances are less.
RANK_MS = UNKNOWN_RTT_MS

_NOTHING = 1e-9  # a share below it is none

Demand = Mapping[str, Mapping[str, float]]  # edge -> demand class -> tokens/s
Costs = Mapping[str, Mapping[str, float]]  # edge -> region -> ms
Shares = dict[str, dict[str, dict[str, float]]]  # edge -> demand class -> region -> share


class Assignment(Struct, frozen=True):
    """Who goes where. Shares of a class at an edge sum to 1 less what is shed of it."""

    shares: Shares
    shed: dict[str, dict[str, float]]  # edge -> demand class -> share, where there is any
    load: dict[str, float]  # region -> tokens/s
    prices: dict[str, float]  # region -> ms, where it is full


def assign(
    demand: Demand,
    cost_ms: Costs,
    capacity: Mapping[str, float],
    limits: Mapping[str, float] | None = None,
) -> Assignment:
    """The shares of least total latency, weighted by demand.

    `capacity`: tokens/s that a region may be given; a region that is not named is down and gets
    nothing. `limits`: the share, 0 to 1, that it may have of any class, where that is not 1. A
    region that an edge knows no cost for counts `UNKNOWN_RTT_MS`. Demand of 0 is left out.
    """
    regions = sorted(capacity)
    edges = [edge for edge, classes in demand.items() if any(v > 0 for v in classes.values())]
    texts = sorted({c for edge in edges for c, value in demand[edge].items() if value > 0})
    if not edges or not regions:
        whole = {e: {c: 1.0 for c, v in demand[e].items() if v > 0} for e in edges}
        nowhere: Shares = {e: {c: {} for c in whole[e]} for e in edges}
        return Assignment(nowhere, whole, dict.fromkeys(regions, 0.0), {})
    groups = _Groups.of(demand, edges, texts)
    lines, which = _lines(cost_ms, edges, regions)
    world = _World(
        regions,
        np.array([*(capacity[r] for r in regions), np.inf]),
        list(_slices(regions, limits or {})),
        lines,
        which[groups.edge],
        groups.tokens,
    )
    classes = [DemandClass.parse(text) for text in texts]
    spread, price = _solve(world, classes, groups.cls)
    return _assignment(groups, edges, texts, regions, spread, price)


class _World(NamedTuple):
    """What demand meets, by number. `line`: which of `lines` each group has."""

    regions: Sequence[str]
    room: Floats  # the last region takes what is shed
    slices: list[tuple[frozenset[str], float]]
    lines: Floats
    line: Ints
    tokens: Floats


def _solve(world: _World, classes: Sequence[DemandClass], cls: Ints) -> tuple[Floats, Floats]:
    """Groups x regions, the share of each; and the prices.

    While nothing is shed the tier makes no difference, and tiers are one class.
    """
    alike = list(dict.fromkeys(DemandClass(TIERS[0], c.regions, c.ordered) for c in classes))
    if len(alike) < len(classes) and world.tokens.sum() <= world.room[:-1].sum():
        shape = np.array(
            [alike.index(DemandClass(TIERS[0], c.regions, c.ordered)) for c in classes]
        )
        spread, price = _spread(world, alike, shape[cls])
        if spread[:, -1].max() <= _NOTHING:
            return spread, price
    return _spread(world, classes, cls)


def _spread(world: _World, classes: Sequence[DemandClass], cls: Ints) -> tuple[Floats, Floats]:
    slices, width = world.slices, len(world.slices)
    table = np.stack([_of_class(c, world.regions, shut) for c in classes for shut, _ in slices])
    # One demand for each set of edges as far from everything, each class and slice of a drain.
    kind = (world.line * len(classes) + cls)[:, None] * width
    kinds, inverse = np.unique(kind + np.arange(width), return_inverse=True)
    widths = np.array([part for _, part in slices])
    parts = world.tokens[:, None] * widths
    tokens: Floats = np.bincount(inverse.ravel(), parts.ravel()).astype(float)
    line, rule = np.divmod(kinds, len(classes) * width)
    tiers = [c.tier for c in classes]
    cost = _costs(world.lines[line], table[rule], tiers, rule // width)
    found = transport(cost, tokens, world.room)
    rows = np.zeros((len(kinds), len(world.room)))
    np.add.at(rows, (found.group, found.region), found.amount)
    rows /= tokens[:, None]
    spread = (rows[inverse.reshape(len(cls), width)] * widths[None, :, None]).sum(axis=1)
    return spread, found.price


def class_cost(cls: DemandClass, line: Mapping[str, float], region: str) -> float:
    """What it costs the class to be served in a region, by an edge's line of costs; in ms."""
    if cls.ordered:
        return cls.regions.index(region) * RANK_MS
    return line.get(region, UNKNOWN_RTT_MS)


def by_order(
    cls: DemandClass,
    line: Mapping[str, float],
    capacity: Mapping[str, float],
    limits: Mapping[str, float],
) -> dict[str, float]:
    """Where the requests of a class go by cost alone, as at an edge that was told no shares."""
    if not cls.ordered and not limits:  # nearly always, and ten thousand times a second
        near = min(
            ((line.get(r, UNKNOWN_RTT_MS), r) for r in cls.regions if r in capacity), default=None
        )
        return {near[1]: 1.0} if near is not None else {}
    order = sorted((class_cost(cls, line, r), r) for r in cls.regions if r in capacity)
    out: dict[str, float] = {}
    open_to = 0.0  # so many draws have found a region
    for _, region in order:
        limit = limits.get(region, 1.0)
        if limit > open_to:
            out[region] = limit - open_to
            open_to = limit
    return out


class _Groups(NamedTuple):
    """Each class at each edge that asks for something."""

    edge: Ints
    cls: Ints
    tokens: Floats

    @classmethod
    def of(cls, demand: Demand, edges: Sequence[str], texts: Sequence[str]) -> _Groups:
        number = {text: index for index, text in enumerate(texts)}
        triples = [
            (index, number[text], value)
            for index, edge in enumerate(edges)
            for text, value in demand[edge].items()
            if value > 0
        ]
        edge, kind, tokens = zip(*triples, strict=True)
        return cls(np.array(edge), np.array(kind), np.array(tokens, dtype=float))


def _lines(cost_ms: Costs, edges: Sequence[str], regions: Sequence[str]) -> tuple[Floats, Ints]:
    """Each distinct line of costs, and which one each edge has."""
    pick = itemgetter(*regions) if len(regions) > 1 else None
    number: dict[tuple[float, ...], int] = {}
    which = []
    for edge in edges:
        known = cost_ms.get(edge, {})
        try:
            line = pick(known) if pick is not None else (known[regions[0]],)
        except KeyError:
            line = tuple(known.get(region, UNKNOWN_RTT_MS) for region in regions)
        which.append(number.setdefault(line, len(number)))
    return np.array(list(number), dtype=float), np.array(which)


def _slices(
    regions: Sequence[str], limits: Mapping[str, float]
) -> Iterator[tuple[frozenset[str], float]]:
    """How requests' draws fall: which regions are shut to how large a part of them.

    An edge draws once for all drains (`topology.routing.plan`), so that of two drained regions
    the one that is drained less is open whenever the other is.
    """
    least = 0.0
    for bound in sorted({1.0, *(1.0 - min(max(limits.get(r, 1.0), 0.0), 1.0) for r in regions)}):
        if bound > least:
            shut = frozenset(r for r in regions if 1.0 - limits.get(r, 1.0) >= bound)
            yield shut, bound - least
            least = bound


def _of_class(cls: DemandClass, regions: Sequence[str], shut: frozenset[str]) -> Floats:
    """What a class adds to each region's cost: its rank, or infinity where it may not go. The
    last number is what its distance counts."""
    extra = np.full(len(regions) + 1, np.inf)
    for rank, region in enumerate(cls.regions):
        if region in regions and region not in shut:
            extra[regions.index(region)] = rank * RANK_MS if cls.ordered else 0.0
    extra[-1] = 0.0 if cls.ordered else 1.0
    return extra


def _costs(lines: Floats, extra: Floats, tiers: Sequence[str], cls: Ints) -> Floats:
    """Regions x demands; the last region takes what is shed.

    Giving one unit a place may move others, each region's at most once. So shedding costs more
    than all of that together, and more again for each higher tier.
    """
    cost = lines * extra[:, -1:] + extra[:, :-1]
    finite = cost[np.isfinite(cost)]
    most = (float(finite.max()) if len(finite) else 0.0) + 1.0
    rank = np.array([TIERS.index(tier) + 1 if tier in TIERS else 1 for tier in tiers])
    shed = rank[cls] * most * (lines.shape[1] + 1)
    return np.ascontiguousarray(np.concatenate([cost, shed[:, None]], axis=1).T)


def _assignment(
    groups: _Groups,
    edges: Sequence[str],
    texts: Sequence[str],
    regions: Sequence[str],
    spread: Floats,
    price: Floats,
) -> Assignment:
    shares: Shares = {edge: {} for edge in edges}
    shed: dict[str, dict[str, float]] = {}
    load = (spread * groups.tokens[:, None]).sum(axis=0)
    for edge, cls in zip(groups.edge.tolist(), groups.cls.tolist(), strict=True):
        shares[edges[edge]][texts[cls]] = {}
    at, where = np.nonzero(spread > _NOTHING)
    amounts = spread[at, where].tolist()
    group_edge, group_cls = groups.edge[at].tolist(), groups.cls[at].tolist()
    for edge, cls, region, amount in zip(
        group_edge, group_cls, where.tolist(), amounts, strict=True
    ):
        if region < len(regions):
            shares[edges[edge]][texts[cls]][regions[region]] = amount
        else:
            shed.setdefault(edges[edge], {})[texts[cls]] = amount
    prices = {r: p for r, p in zip(regions, price.tolist(), strict=False) if p > _NOTHING}
    return Assignment(shares, shed, dict(zip(regions, load.tolist(), strict=False)), prices)
