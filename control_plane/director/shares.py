"""How the demand of edges is spread over regions, from one second to the next. Pure.

What is best is worked out anew each second from what edges and cores report; what edges are told
follows it without haste (`topology.damping`). A class of which nothing is said goes by latency,
as it would without a director; so where all regions have room, nothing is said at all.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from control_plane.directives.observed import CoreReport, EdgeReport, Observed, RegionSeen
from control_plane.directives.state import Outlook, State
from topology.assignment import Assignment, Shares, assign
from topology.damping import SERVED_DIGITS, SERVED_SLACK, advance_shares
from topology.demand import DemandClass
from topology.directive import Directive
from topology.latency import published_rtt_ms
from topology.resources import Key
from topology.routing import standing
from topology.snapshot import Snapshot

Flows = dict[str, dict[str, float]]

_LEAST_TOKENS_PER_S = 0.05  # of a class at an edge: less is no demand
_LEAST_REQUESTS_PER_S = 0.05  # to a region: fewer say nothing about its errors
_TOKENS_GUESSED = 100.0  # of an answer, while none was seen
# A region's own word on how full it is counts above this; below it, it says little.
_TELLING_UTILISATION = 0.3
_TELLING_DIFFERENCE = 0.2  # of its capacity: by less than this, its declared capacity is right
_LEAST_CAPACITY = 0.2  # of what is declared, however full it says it is


class Spread(Struct, frozen=True):
    """`shares` and `shed` as `State` has them."""

    shares: Shares
    shed: dict[str, dict[str, float]]
    notes: tuple[str, ...]
    outlook: Outlook


def advance(snapshot: Snapshot, state: State, observed: Observed, now_s: float) -> Spread:
    """The spread for the next second.

    `state` is of the second before, its verdicts already of this one. Rates in `observed` are
    smoothed by who reports them.
    """
    demand = _demand(snapshot, observed.edges)
    flows = _flows(snapshot, observed.edges)
    limits = _limits(snapshot, state, now_s)
    capacity = _capacity(snapshot, state, observed, flows)
    costs = {edge: _line(snapshot, edge, seen) for edge, seen in _seen(observed, demand).items()}
    try:
        found = assign(demand, costs, capacity, limits)
    except ArithmeticError as error:  # verdicts, drains and quotas do not wait for it
        outlook = _outlook(observed, flows, capacity, Assignment({}, {}, {}, {}), now_s)
        return Spread(state.shares, state.shed, (f"shares stay as they are: {error}",), outlook)
    policy = snapshot.policy.director
    shares = advance_shares(state.shares, found.shares, demand, costs, capacity, policy, limits)
    silent = snapshot.edges.keys() - {r.edge for r in observed.edges.values() if r.load_at_s > 0}
    for edge in state.shares.keys() & silent:  # whoever reports no load keeps what it was told
        kept = {c: s for c, s in state.shares[edge].items() if _is_known(snapshot, c)}
        if kept:
            shares[edge] = kept
    outlook = _outlook(observed, flows, capacity, found, now_s)
    return Spread(shares, _shed(found, state.shed), _notes(found, demand), outlook)


def _demand(snapshot: Snapshot, reports: Mapping[str, EdgeReport]) -> Flows:
    """Edge -> class -> tokens/s that its requests ask for, those that failed too."""
    sums: dict[tuple[str, str], list[float]] = {}
    for report in reports.values():
        if report.edge in snapshot.edges:
            for text, load in report.demand.items():
                held = sums.setdefault((report.edge, text), [0.0, 0.0, 0.0])
                held[0] += load.tokens_per_s
                held[1] += load.requests_per_s
                held[2] += min(load.errors_per_s, load.requests_per_s)
    served = sum(requests - errors for _, requests, errors in sums.values())
    mean = sum(s[0] for s in sums.values()) / served if served > 0 else _TOKENS_GUESSED
    known = {text: _is_known(snapshot, text) for text in {text for _, text in sums}}
    demand: Flows = {}
    for (edge, text), (tokens, requests, errors) in sums.items():
        asked = tokens + errors * (tokens / (requests - errors) if requests > errors else mean)
        if known[text] and asked >= _LEAST_TOKENS_PER_S:
            demand.setdefault(edge, {})[text] = asked
    return demand


def _is_known(snapshot: Snapshot, text: str) -> bool:
    """Whether a class is of this snapshot: edges may be a change behind, proxies name others."""
    regions = DemandClass.parse(text).regions
    return bool(regions) and all(region in snapshot.regions for region in regions)


def _flows(snapshot: Snapshot, reports: Mapping[str, EdgeReport]) -> Flows:
    """Class -> region -> tokens/s that are served there."""
    flows: Flows = {}
    for report in reports.values():
        for text, load in report.demand.items():
            if text not in flows and not _is_known(snapshot, text):
                continue
            held = flows.setdefault(text, {})
            for region, tokens in load.regions.items():
                held[region] = held.get(region, 0.0) + tokens
    return flows


def _seen(observed: Observed, demand: Flows) -> dict[str, dict[str, float]]:
    """Edge -> region -> ms, as the nearest of its workers measures it."""
    out: dict[str, dict[str, float]] = {edge: {} for edge in demand}
    for report in observed.edges.values():
        line = out.get(report.edge)
        if line is not None:
            for region, view in report.regions.items():
                if view.rtt_ms is not None:
                    line[region] = min(view.rtt_ms, line.get(region, view.rtt_ms))
    return out


def _line(snapshot: Snapshot, edge: str, seen: Mapping[str, float]) -> dict[str, float]:
    """An edge's distances, as its routing has them: measured, else expected."""
    line = {}
    city = snapshot.edges[edge].city
    for region, spec in snapshot.regions.items():
        rtt_ms = seen.get(region)
        if rtt_ms is None:
            link = snapshot.link(Key("EdgeSite", edge), Key("Region", region))
            rtt_ms = link.rtt_ms if link is not None else published_rtt_ms(city, spec.city)
        if rtt_ms is not None:
            line[region] = rtt_ms
    return line


def _limits(snapshot: Snapshot, state: State, now_s: float) -> dict[str, float]:
    """Region -> what overrides leave of it, paced ones as far as they have come."""
    told = Directive(
        drains={region: drain.percent for region, drain in state.drains.items()},
        overrides={region: drain.override_revision for region, drain in state.drains.items()},
    )
    standings = {region: standing(snapshot, region, now_s, told) for region in snapshot.regions}
    return {r: 1.0 - held.percent / 100.0 for r, held in standings.items() if held is not None}


def _capacity(
    snapshot: Snapshot, state: State, observed: Observed, flows: Flows
) -> dict[str, float]:
    """Region that is up -> tokens/s that edges may send there."""
    ours: dict[str, float] = {}
    for regions in flows.values():
        for region, tokens in regions.items():
            ours[region] = ours.get(region, 0.0) + tokens
    target = snapshot.policy.director.target_utilisation
    capacity = {}
    for region, spec in snapshot.regions.items():
        verdict = state.verdicts.get(region)
        if verdict is not None and not verdict.up:
            continue
        cores = [core for core in observed.cores.values() if core.region == region]
        declared = spec.capacity_tokens_per_s
        able = _able(declared, cores)
        others = sum(core.tokens_per_s for core in cores) - ours.get(region, 0.0)
        if others < _TELLING_DIFFERENCE * declared:
            others = 0.0
        capacity[region] = max(target * able - others, 0.0)
    return capacity


def _able(declared: float, cores: list[CoreReport]) -> float:
    """What a region can do, tokens/s: what it declares, unless its cores know better."""
    well = [core for core in cores if core.healthy and not core.draining]
    if not well:
        return declared  # nobody says anything; or the region is down, and others say so
    able = declared * len(well) / len(cores)
    utilisation = sum(core.utilisation for core in well) / len(well)
    if utilisation >= _TELLING_UTILISATION:
        shown = sum(core.tokens_per_s for core in well) / utilisation
        if shown < (1.0 - _TELLING_DIFFERENCE) * able:
            return max(shown, _LEAST_CAPACITY * able)
    return able


def _shed(found: Assignment, told: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """What was told stays where the new figure is near it."""
    shed: dict[str, dict[str, float]] = {}
    for edge, classes in found.shed.items():
        held = told.get(edge, {})
        for text, part in classes.items():
            rounded, before = round(part, SERVED_DIGITS), held.get(text, 0.0)
            if rounded > 0.0:
                near = before > 0.0 and abs(rounded - before) <= SERVED_SLACK
                shed.setdefault(edge, {})[text] = before if near else rounded
    return shed


def _notes(found: Assignment, demand: Flows) -> tuple[str, ...]:
    notes = [f"{region} is full: some go further" for region in sorted(found.prices)]
    lost: dict[str, float] = {}
    for edge, classes in found.shed.items():
        for text, part in classes.items():
            tier = DemandClass.parse(text).tier
            lost[tier] = lost.get(tier, 0.0) + part * demand[edge][text]
    asked: dict[str, float] = {}
    for classes in demand.values():
        for text, tokens in classes.items():
            tier = DemandClass.parse(text).tier
            asked[tier] = asked.get(tier, 0.0) + tokens
    for tier, tokens in sorted(lost.items()):
        percent = round(100.0 * tokens / asked[tier])
        if percent:
            notes.append(f"no region has room for {percent}% of what {tier} tenants ask")
    return tuple(notes)


def _outlook(
    observed: Observed,
    flows: Flows,
    capacity: dict[str, float],
    found: Assignment,
    now_s: float,
) -> Outlook:
    utilisation: dict[str, list[float]] = {}
    for core in observed.cores.values():
        utilisation.setdefault(core.region, []).append(core.utilisation)
    views: dict[str, list[RegionSeen]] = {}
    for report in observed.edges.values():
        for region, view in report.regions.items():
            views.setdefault(region, []).append(view)
    requests = {r: sum(v.requests_per_s for v in seen) for r, seen in views.items()}
    errors = {r: sum(v.errors_per_s for v in seen) for r, seen in views.items()}
    return Outlook(
        at_s=now_s,
        flows=flows,
        utilisation={r: sum(shown) / len(shown) for r, shown in utilisation.items()},
        error_rate={
            r: min(1.0, errors[r] / requests[r])
            for r in requests
            if requests[r] >= _LEAST_REQUESTS_PER_S
        },
        first_token_ms={r: ms for r in views if (ms := _first_token_ms(views[r])) is not None},
        edges=len({report.edge for report in observed.edges.values()}),
        prices=found.prices,
        capacity=capacity,
    )


def _first_token_ms(views: list[RegionSeen]) -> float | None:
    """Over all edges, each counting by its requests, less the way there and back: see `Outlook`."""
    told = [
        (max(v.first_token_ms - (v.rtt_ms or 0.0), 0.0), v.requests_per_s)
        for v in views
        if v.first_token_ms is not None
    ]
    weight = sum(rate for _, rate in told)
    return sum(ms * rate for ms, rate in told) / weight if weight > 0 else None
