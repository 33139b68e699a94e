"""Which regions may serve a request, in which order, and why not the others.

Pure: the edge calls it for every request that its cache cannot answer, and `tradewind explain`
calls it to say what an edge would do, so both give one answer. The order of the rules is the
order of authority: what the tenant's residency forbids nothing can allow; then what the route,
the tenant and the model allow; then operators' overrides; then what is down for everybody; then
what the edge sees is reachable. Among the regions that are left, the director's shares say how
many requests each is given first; without them, the nearest is.

A `Plan` holds every decision that requests of one kind may get. Two numbers that each request
draws pick one: its place in partial drains, and its place in the shares.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from itertools import accumulate

import msgspec
from msgspec import Struct

from topology.demand import class_of
from topology.demand import route_for as route_for
from topology.demand import selects as selects
from topology.directive import NONE, Directive
from topology.paths import name_of
from topology.reach import UNKNOWN_RTT_MS as UNKNOWN_RTT_MS
from topology.reach import RegionView as RegionView
from topology.reach import Relays, reach
from topology.reach import Views as Views
from topology.resources import Key, ModelSpec, OverrideSpec, RouteSpec, TenantSpec
from topology.snapshot import Snapshot


class Candidate(Struct, frozen=True):
    """A region that may serve the request, best first in a `Decision`."""

    region: str
    rtt_ms: float
    path: str  # `direct`, or `via <region>`
    why: str
    share: float = -1.0  # of such requests, as the director has it; -1: it names none
    relay: str = ""  # the region that `path` leads through; "": none
    others: tuple[str, ...] = ()  # relays of the further ways there that live and are allowed
    cores: int = 1  # of them reached straight: where one dies, another may go on


class Exclusion(Struct, frozen=True):
    """A region that may not, and the rule that said so."""

    region: str
    rule: str  # residency | route | model | override | down | unreachable
    why: str


class Decision(Struct, frozen=True):
    """`candidates` in the order to try them. Empty: `refusal` says what to tell the client."""

    candidates: tuple[Candidate, ...]
    excluded: tuple[Exclusion, ...]
    route: str = ""
    refusal: str = ""  # unknown_model | model_not_allowed | no_route | residency | no_region
    demand_class: str = ""  # see `topology.demand`


class Step(Struct, frozen=True):
    """For requests that drew less than `below`, and no less than the step before says.

    `decisions` differ in which region is first; `cumulative` are their shares, added up.
    """

    below: float
    cumulative: tuple[float, ...]
    decisions: tuple[Decision, ...]

    def at(self, pick: float) -> Decision:
        last = len(self.decisions) - 1
        return (
            self.decisions[min(bisect_right(self.cumulative, pick), last)]
            if last
            else (self.decisions[0])
        )


class Plan(Struct, frozen=True):
    """What becomes of requests of one tenant for one model, until `until_s` (Unix time)."""

    steps: tuple[Step, ...]
    until_s: float = float("inf")

    @property
    def only(self) -> Decision | None:
        """The decision that all requests get, where it does not depend on what they draw."""
        first = self.steps[0].decisions
        return first[0] if len(self.steps) == 1 and len(first) == 1 else None

    def at(self, draw: float, pick: float) -> Decision:
        """The decision for a request that drew these, both in [0, 1)."""
        for step in self.steps:
            if draw < step.below:
                return step.at(pick)
        return self.steps[-1].at(pick)

    def first(self) -> dict[str, float]:
        """How many of the requests go to each region first. They sum to 1, less those refused."""
        shares: dict[str, float] = {}
        from_draw = 0.0
        for step in self.steps:
            below = 0.0
            for upto, decision in zip(step.cumulative, step.decisions, strict=True):
                if decision.candidates:
                    region = decision.candidates[0].region
                    part = (step.below - from_draw) * (upto - below)
                    shares[region] = shares.get(region, 0.0) + part
                below = upto
            from_draw = step.below
        return shares


def decide(
    snapshot: Snapshot,
    edge: str,
    tenant: str,
    model: str,
    views: Views,
    now_s: float,
    draw: float = 0.0,
    directive: Directive = NONE,
    pick: float = 0.0,
) -> Decision:
    """Order the regions for one request of `tenant` for `model` at `edge`.

    `now_s` is Unix time (overrides expire); `draw` in [0, 1) is the request's place in a partial
    drain: a region drained by 30% loses the requests that drew less than 0.3. `directive` is what
    the director told this edge last: where paced drains stand, what is down, who takes how much.
    `pick` in [0, 1) is the request's place in those shares.
    """
    return plan(snapshot, edge, tenant, model, views, now_s, directive).at(draw, pick)


def plan(
    snapshot: Snapshot,
    edge: str,
    tenant: str,
    model: str,
    views: Views,
    now_s: float,
    directive: Directive = NONE,
    *,
    stand_in: bool = False,
) -> Plan:
    """All that `decide` may say of such requests, and how often it says what. `stand_in`: the
    model answers for one that the tenant may use (`ModelSpec.substitute`)."""
    model_spec = snapshot.models.get(model)
    tenant_spec = snapshot.tenants.get(tenant)
    if model_spec is None:
        return _refused("unknown_model")
    if tenant_spec is None or not (stand_in or selects(tenant_spec.models, model)):
        return _refused("model_not_allowed")
    found = route_for(snapshot, tenant, model)
    if found is None:
        return _refused("no_route")
    name, route = found
    cls = class_of(snapshot, route, model_spec, tenant_spec)
    text = str(cls) if cls is not None else ""
    ways = _ways(snapshot, edge, route, model_spec, tenant_spec, views, now_s, directive)
    decision = Decision((), (), name, demand_class=text)
    down = set(directive.down)
    shares = _among(directive.shares.get(text, {}), _sift(ways, 1.0, down)[1])
    bounds = sorted({w.drained for w in ways if 0.0 < w.drained < 1.0} | {1.0})
    steps = tuple(_step(ways, below, decision, shares, down) for below in bounds)
    regions = cls.regions if cls is not None else ()
    expiries = (o.expires_s for o in snapshot.overrides.values() if o.region in regions)
    later = (at for at in expiries if at is not None and at > now_s)
    return Plan(steps, min(later, default=float("inf")))


def _refused(refusal: str) -> Plan:
    return Plan((Step(1.0, (1.0,), (Decision((), (), refusal=refusal),)),))


def active_override(snapshot: Snapshot, region: str, now_s: float) -> OverrideSpec | None:
    """The override on `region` that has not expired and goes the furthest."""
    active = (spec for _, spec in _active(snapshot, region, now_s))
    return max(active, key=lambda spec: spec.percent, default=None)


class Standing(Struct, frozen=True):
    """An override, and how much of the region's requests it moves away now."""

    override: OverrideSpec
    percent: float


def standing(
    snapshot: Snapshot, region: str, now_s: float, directive: Directive = NONE
) -> Standing | None:
    """The override on `region` that holds strongest now.

    A paced one holds as the director last said; where it has said nothing of this override, it
    stands where it began, for as long as it takes.
    """
    strongest: Standing | None = None
    for name, override in _active(snapshot, region, now_s):
        percent = override.percent
        if override.over_s > 0:
            percent = override.from_percent
            if region in directive.drains and _knows(directive, snapshot, region, name):
                percent = directive.drains[region]
        if strongest is None or percent > strongest.percent:
            strongest = Standing(override, percent)
    return strongest


def _active(snapshot: Snapshot, region: str, now_s: float) -> Iterator[tuple[str, OverrideSpec]]:
    for name, spec in snapshot.overrides.items():
        if spec.region == region and (spec.expires_s is None or spec.expires_s > now_s):
            yield name, spec


def _knows(directive: Directive, snapshot: Snapshot, region: str, name: str) -> bool:
    """Whether the directive's drain is of this override, or of one that comes after it: not of
    an earlier one, which was replaced when no director was there to see it."""
    held = snapshot.get(Key("Override", name))
    told = directive.overrides.get(region)
    return held is None or told is None or told >= held.revision


class _Way(Struct, frozen=True):
    """One region, before any draw. `exclusion` holds for every draw, `override` for those below
    `drained`."""

    candidate: Candidate
    rank: int  # on an ordered route
    exclusion: Exclusion | None
    override: Exclusion | None
    drained: float
    unreachable: str  # why this edge has no way there; "": it has
    doubted: bool  # it has one, and found that the region does not serve
    cost_ms: float  # what the nearest is by: the way there, and the queue at its end
    part: float = 1.0  # of the requests it would be given first: it returns from failing


def _ways(
    snapshot: Snapshot,
    edge: str,
    route: RouteSpec,
    model: ModelSpec,
    tenant: TenantSpec,
    views: Views,
    now_s: float,
    directive: Directive,
) -> list[_Way]:
    ways = []
    relays = Relays.for_tenant(snapshot, tenant, _emptied(snapshot, now_s, directive))
    for region, spec in snapshot.regions.items():
        exclusion = _exclusion(snapshot, region, spec.jurisdiction, route, model, tenant)
        held = standing(snapshot, region, now_s, directive) if exclusion is None else None
        view = views.get(region) if exclusion is None else None
        rank = route.regions.index(region) if exclusion is None else 0
        found = reach(snapshot, edge, region, view, relays)
        path = name_of(found.relay)
        part = view.part if view is not None else 1.0
        way = _Way(
            candidate=Candidate(
                region,
                found.rtt_ms,
                path,
                f"{found.why}; {_returning(part)}" if 0.0 < part < 1.0 else found.why,
                relay=found.relay,
                others=found.others,
                cores=view.cores if view is not None else 1,
            ),
            rank=rank if route.prefer == "ordered" else 0,
            exclusion=exclusion,
            override=_override_exclusion(region, held) if held is not None else None,
            drained=held.percent / 100.0 if held is not None else 0.0,
            unreachable=found.unreachable,
            doubted=found.doubted,
            cost_ms=found.cost_ms,
            part=part,
        )
        ways.append(way)
    return ways


def _returning(part: float) -> str:
    return f"it failed lately, and takes {part:.0%} of its part"


def _emptied(snapshot: Snapshot, now_s: float, directive: Directive) -> frozenset[str]:
    """Regions that an override moves all requests away from."""
    emptied = set()
    for region in {override.region for override in snapshot.overrides.values()}:
        held = standing(snapshot, region, now_s, directive)
        if held is not None and held.percent >= 100.0:
            emptied.add(region)
    return frozenset(emptied)


def _step(
    ways: list[_Way], below: float, decision: Decision, shares: Mapping[str, float], down: set[str]
) -> Step:
    """For the requests whose draws fall in the stretch that ends `below`."""
    excluded, left = _sift(ways, below, down)
    if not left:
        refused = msgspec.structs.replace(
            decision, excluded=tuple(excluded), refusal=_refusal(excluded)
        )
        return Step(below, (1.0,), (refused,))
    weights = _weights(left, shares)
    order = [
        msgspec.structs.replace(way.candidate, share=shares.get(way.candidate.region, 0.0))
        if weights
        else way.candidate
        for way in sorted(left, key=lambda w: _rank(w, shares if weights else {}))
    ]
    parts = {way.candidate.region: way.part for way in left if 0.0 < way.part < 1.0}
    if parts:
        weights = _eased(weights or {order[0].region: 1.0}, [c.region for c in order], parts)
    firsts = [c for c in order if weights.get(c.region, 0.0) > 0.0] or order[:1]
    decisions = tuple(
        msgspec.structs.replace(
            decision,
            candidates=(first, *(c for c in order if c is not first)),
            excluded=tuple(excluded),
        )
        for first in firsts
    )
    shares_of_firsts = accumulate(weights.get(c.region, 1.0) for c in firsts)
    return Step(below, tuple(shares_of_firsts), decisions)


def _sift(ways: list[_Way], below: float, down: set[str]) -> tuple[list[Exclusion], list[_Way]]:
    """Those that may not serve such a request, and those that may. What is down for everybody
    but not for this edge is better than nothing. So is what a drain takes only a part from, where
    those that should have the part cannot be reached; and last, what is reached and seems not to
    serve."""
    excluded: list[Exclusion] = []
    left: list[_Way] = []
    doubtful: list[_Way] = []
    doubted: list[_Way] = []
    for way in ways:
        region = way.candidate.region
        if way.exclusion is not None:
            excluded.append(way.exclusion)
        elif way.override is not None and way.drained >= below:
            excluded.append(way.override)
        elif way.unreachable:
            excluded.append(Exclusion(region, "unreachable", way.unreachable))
            if way.doubted:
                doubted.append(way)
        else:
            (doubtful if region in down else left).append(way)
    if left:
        why = "it is down, as most edges or the registry see it"
        excluded += (Exclusion(way.candidate.region, "down", why) for way in doubtful)
        return excluded, left
    if doubtful or all(e.rule != "unreachable" for e in excluded):
        return excluded, doubtful
    partly = [
        w for w in ways if w.exclusion is None and 0.0 < w.drained < 1.0 and not w.unreachable
    ]
    last = partly or doubted
    regions = {way.candidate.region for way in last}
    return [e for e in excluded if e.region not in regions], last


def _rank(way: _Way, shares: Mapping[str, float]) -> tuple[float, int, float, str]:
    candidate = way.candidate
    return -shares.get(candidate.region, 0.0), way.rank, way.cost_ms, candidate.region


def _among(shares: Mapping[str, float], ways: list[_Way]) -> dict[str, float]:
    """The shares of those that can serve at all, who take over those of the others; empty where
    no share says anything."""
    asked = {way.candidate.region: shares.get(way.candidate.region, 0.0) for way in ways}
    total = sum(asked.values())
    return {region: part / total for region, part in asked.items()} if total > 0.0 else {}


def _weights(left: list[_Way], shares: Mapping[str, float]) -> dict[str, float]:
    """Region -> how many of the requests in this stretch of draws it is given first; empty where
    no share says anything.

    A region of which an override takes a part gets its whole share from the requests that the
    override leaves it, as far as there are enough; the others divide the rest by their shares.
    """
    asked = {way.candidate.region: shares.get(way.candidate.region, 0.0) for way in left}
    partly = {w.candidate.region: w.drained for w in left if w.drained > 0.0}
    own = {region: min(1.0, asked[region] / (1.0 - by)) for region, by in partly.items()}
    taken = sum(own.values())
    others = sum(part for region, part in asked.items() if region not in own)
    if taken > 1.0 or (taken > 0.0 and others <= 0.0):
        return {region: part / taken for region, part in own.items()}
    if others <= 0.0:
        return {}
    rest = {r: (1.0 - taken) * part / others for r, part in asked.items() if r not in own}
    return own | rest


def _eased(
    weights: Mapping[str, float], order: list[str], parts: Mapping[str, float]
) -> dict[str, float]:
    """The same for regions of which some return, and take a part of theirs; what they leave goes
    to the others, by their weights, or to the first of them where none has one."""
    eased = {region: weight * parts.get(region, 1.0) for region, weight in weights.items()}
    left = sum(weights.values()) - sum(eased.values())
    whole = {r: w for r, w in weights.items() if w > 0.0 and r not in parts}
    if not whole:
        whole = dict.fromkeys([r for r in order if r not in parts][:1], 1.0)
    total = sum(whole.values())
    for region, weight in whole.items():
        eased[region] = eased.get(region, 0.0) + left * weight / total
    taken = sum(eased.values())
    return {region: weight / taken for region, weight in eased.items()}


def _exclusion(
    snapshot: Snapshot,
    region: str,
    jurisdiction: str,
    route: RouteSpec,
    model: ModelSpec,
    tenant: TenantSpec,
) -> Exclusion | None:
    if tenant.residency is not None and jurisdiction not in tenant.residency:
        allowed = ", ".join(tenant.residency)
        return Exclusion(
            region, "residency", f"it lies in {jurisdiction}; the tenant's data stays in {allowed}"
        )
    if region not in route.regions:
        return Exclusion(region, "route", f"the route names {', '.join(route.regions)}")
    if region not in model.regions:
        return Exclusion(region, "model", f"the model lies in {', '.join(model.regions)}")
    return None


def _override_exclusion(region: str, held: Standing) -> Exclusion:
    verb = "drained" if held.override.action == "drain" else "failed over"
    return Exclusion(region, "override", f"{verb} ({held.percent:.3g}%): {held.override.reason}")


def _refusal(excluded: list[Exclusion]) -> str:
    beyond_residency = [e for e in excluded if e.rule != "residency"]
    return "no_region" if beyond_residency else "residency"
