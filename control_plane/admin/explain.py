"""Where a client's request goes and why, by the same rules that DNS and the edges use. Pure.

It says what the configuration and the director decide, with what the edge was heard to measure.
Where the edge was not heard here, it goes by published distances; what DNS probes (which edge is
healthy) it does not know. It says so in either case.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, Sequence

import msgspec
from msgspec import Struct

from control_plane.geodns.policy import Choice, choose_edges, spread_of
from runtime.validation import InvalidDocument, Problem
from topology.directive import NONE, Directive
from topology.errors import UnknownName
from topology.geo import Address, Locator, Place
from topology.latency import published_rtt_ms
from topology.resources import Key
from topology.routing import Candidate, Exclusion, Plan, RegionView, Views, plan, standing
from topology.snapshot import Snapshot

_NAMED = 20  # in a hint


class Question(Struct, frozen=True):
    """A request to explain: `client` is an address, a subnet or `latitude,longitude`."""

    client: str
    tenant: str
    model: str
    name: str = ""
    edge: str = ""


class EdgeAnswer(Struct, frozen=True):
    """Which edge, and how DNS came to it. `choice` is None where the edge was given."""

    edge: str
    name: str
    place: str
    choice: Choice | None


class Told(Struct, frozen=True):
    """What is known of one edge beside the configuration."""

    directive: Directive = NONE
    views: Views = {}  # as the edge measures; empty: it was not heard here
    prices: Mapping[str, float] = {}  # region that is full -> what a place is worth, in ms
    why: Mapping[str, str] = {}  # region -> why the edge prefers the way that it does
    notes: tuple[str, ...] = ()


class Outcome(Struct, frozen=True):
    """What may happen to one region. `share`: of such requests at this edge that it gets first;
    -1: by order alone."""

    region: str
    why: str
    excluded: bool = False
    rtt_ms: float = 0.0
    share: float = -1.0
    path: str = ""


class Explanation(Struct, frozen=True):
    """Everything that decides, in order. `outcomes`: the likeliest region first."""

    answer: EdgeAnswer
    outcomes: tuple[Outcome, ...]
    demand_class: str
    refusal: str  # for people; empty: served
    notes: tuple[str, ...]
    heard: bool  # what the edge sees of the regions is known here

    @property
    def chosen(self) -> Outcome | None:
        first = self.outcomes[0] if self.outcomes else None
        return first if first is not None and not first.excluded else None


def explain(
    snapshot: Snapshot,
    locator: Locator,
    question: Question,
    now_s: float,
    told: Callable[[str], Told] = lambda _: Told(),
) -> Explanation:
    """`told`: edge -> what is known of it. Raises `InvalidDocument` and `UnknownName`."""
    for what, value in (("tenant", question.tenant), ("model", question.model)):
        if not value:
            raise InvalidDocument([Problem("request", what, "nothing", f"the name of a {what}")])
    _known(snapshot, "Tenant", question.tenant)
    _known(snapshot, "Model", question.model)
    answer = _edge(snapshot, locator, question)
    known = told(answer.edge)
    published = _published_views(snapshot, answer.edge)
    views = published | {r: _with_distance(v, published.get(r)) for r, v in known.views.items()}
    found = plan(
        snapshot, answer.edge, question.tenant, question.model, views, now_s, known.directive
    )
    outcomes = _outcomes(snapshot, found, known, now_s)
    last = found.steps[-1].decisions[0]
    return Explanation(
        answer=answer,
        outcomes=outcomes,
        demand_class=last.demand_class,
        refusal=_refusal(question, last.refusal),
        notes=_notes(snapshot, answer, found, known),
        heard=bool(known.views),
    )


def _outcomes(snapshot: Snapshot, found: Plan, known: Told, now_s: float) -> tuple[Outcome, ...]:
    """The regions that get some requests, most first; those that wait; those that get none."""
    first = found.first()
    decision = found.steps[-1].decisions[0]  # of those that no drain takes anything from
    drawn = found.only is None or known.directive.shares.get(decision.demand_class)
    nearest = min(decision.candidates, key=lambda c: c.rtt_ms, default=None)
    outcomes = [
        Outcome(
            region=candidate.region,
            why=_why(snapshot, candidate, candidate is nearest, first, known, now_s)
            + f"; by Route/{decision.route}",
            rtt_ms=candidate.rtt_ms,
            share=first.get(candidate.region, 0.0) if drawn else -1.0,
            path=candidate.path,
        )
        for candidate in decision.candidates
    ]
    outcomes.sort(key=lambda outcome: -outcome.share)
    return (*outcomes, *(_excluded(exclusion) for exclusion in decision.excluded))


def _excluded(exclusion: Exclusion) -> Outcome:
    return Outcome(exclusion.region, f"{exclusion.rule}: {exclusion.why}", excluded=True)


def _why(
    snapshot: Snapshot,
    candidate: Candidate,
    nearest: bool,
    first: Mapping[str, float],
    known: Told,
    now_s: float,
) -> str:
    region, told = candidate.region, known.directive
    parts = [candidate.why]
    if known.why.get(region):
        parts.append(f"its ways: {known.why[region]}")
    held = standing(snapshot, region, now_s, told)
    if held is not None and held.percent > 0:
        verb = "drained" if held.override.action == "drain" else "failed over"
        to = f" on its way to {held.override.percent:g}%" if held.override.over_s > 0 else ""
        parts.append(f"{verb} by {held.percent:.3g}%{to}: {held.override.reason}")
    if candidate.share >= 0:
        percent = f"{100 * first.get(region, 0.0):.3g}%"
        price = known.prices.get(region)
        if price is not None:
            parts.append(f"it is full: a place in it is worth {price:.0f} ms")
        if first.get(region, 0.0) <= 0.0:
            parts.append("the director sends nothing there; it is tried when others fail")
        elif nearest:
            parts.append(f"nearest; the director leaves it {percent}")
        else:
            parts.append(f"the director gives it {percent}, since nearer ones are full or drained")
    if region in told.down:
        parts.append("down, as most see it, but there is no other")
    return "; ".join(parts)


def _known(snapshot: Snapshot, kind: str, name: str) -> None:
    held = snapshot.of_kind(kind)
    if name not in held:
        raise UnknownName(f"no {kind} {name!r}", hint=f"there is: {_listed(sorted(held))}")


def _listed(names: Sequence[str]) -> str:
    """There may be thousands."""
    more = f" and {len(names) - _NAMED} more: `tradewind get`" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more or "none is defined"


def _edge(snapshot: Snapshot, locator: Locator, question: Question) -> EdgeAnswer:
    if question.edge:
        _known(snapshot, "EdgeSite", question.edge)
        return EdgeAnswer(question.edge, "", "not asked: the edge was given", None)
    zone, name = _zone_and_name(snapshot, question.name)
    address, place, told = _place(locator, question.client)
    spread = spread_of(address) if address is not None else 0
    choice = choose_edges(snapshot, zone, name, place, frozenset(snapshot.edges), spread)
    if not choice.edges:
        raise UnknownName(f"{name} in {zone} names no edge", hint="apply an EdgeSite first")
    full = zone if name == "@" else f"{name}.{zone}"
    return EdgeAnswer(choice.edges[0], full, told, choice)


def _zone_and_name(snapshot: Snapshot, wanted: str) -> tuple[str, str]:
    """The zone and the name in it; with nothing wanted, the only one there is."""
    names = [(zone, entry.name) for zone, spec in snapshot.zones.items() for entry in spec.names]
    full = [zone if name == "@" else f"{name}.{zone}" for zone, name in names]
    have = _listed(full) if full else "none: apply a Zone first"
    if not wanted:
        if len(names) == 1:
            return names[0]
        raise UnknownName("which DNS name? say --name", hint=f"there is: {have}")
    wanted = wanted.rstrip(".").lower()
    for pair, name in zip(names, full, strict=True):
        if wanted in (name.lower(), pair[1].lower()):
            return pair
    raise UnknownName(f"no DNS name {wanted!r}", hint=f"there is: {have}")


def _place(locator: Locator, client: str) -> tuple[Address | None, Place | None, str]:
    parts = client.split(",")
    if len(parts) == 2:
        try:
            place = Place("the place given", float(parts[0]), float(parts[1]), 0)
        except ValueError:
            pass
        else:
            if abs(place.latitude) <= 90 and abs(place.longitude) <= 180:
                return None, place, f"{client.strip()}, as given"
    try:
        address = ipaddress.ip_interface(client.strip()).ip
    except ValueError as error:
        allowed = "an IP address, a subnet such as 203.0.113.0/24, or latitude,longitude"
        raise InvalidDocument([Problem("request", "client", repr(client), allowed)]) from error
    place_found = locator.locate(address)
    if place_found is None:
        return address, None, f"{address} is in no table: edges are spread by its network"
    return address, place_found, f"{place_found.city}, by the table for {address}"


def _published_views(snapshot: Snapshot, edge: str) -> dict[str, RegionView]:
    """Distances for regions to which no link is declared; all are taken to be reachable."""
    views = {}
    spec = snapshot.edges[edge]
    for name, region in snapshot.regions.items():
        if snapshot.link(Key("EdgeSite", edge), Key("Region", name)) is None:
            rtt_ms = published_rtt_ms(spec.city, region.city)
            if rtt_ms is not None:
                views[name] = RegionView(reachable=True, rtt_ms=rtt_ms)
    return views


def _with_distance(seen: RegionView, published: RegionView | None) -> RegionView:
    """What an edge sees, with the published distance where it has measured none."""
    if seen.rtt_ms is not None or seen.paths or published is None:
        return seen
    return msgspec.structs.replace(seen, rtt_ms=published.rtt_ms)


def _refusal(question: Question, refusal: str) -> str:
    tenant, model = question.tenant, question.model
    said = {
        "": "",
        "unknown_model": f"no model {model!r}",
        "model_not_allowed": f"tenant {tenant} may not use {model}",
        "no_route": f"no route covers tenant {tenant} and model {model}",
        "residency": f"no region lies where the data of {tenant} must stay",
        "no_region": "every region that may serve it is taken out, or out of reach",
    }
    return said.get(refusal, refusal)


def _notes(snapshot: Snapshot, answer: EdgeAnswer, found: Plan, known: Told) -> tuple[str, ...]:
    directive = known.directive
    notes = []
    if known.views:
        notes.append("distances are those that the edge measured last, where it has")
    else:
        notes.append("distances are published ones; the edge goes by what it measures")
    notes += known.notes
    if answer.choice is not None and len(answer.choice.edges) > 1:
        notes.append(
            f"DNS answers with {', '.join(answer.choice.edges)}; clients mostly take the "
            "first. An edge that fails its health checks is left out"
        )
    refused = 1.0 - sum(found.first().values())
    if refused > 1e-6 and not found.steps[-1].decisions[0].refusal:
        notes.append(f"{100 * refused:.3g}% of such requests are refused: drains leave no region")
    shed = directive.shed.get(found.steps[-1].decisions[0].demand_class, 0.0)
    if shed > 0:
        notes.append(
            f"no region has room for {100 * shed:.3g}% of such requests: expect queues and refusals"
        )
    if directive.number:
        notes.append(f"by directive {directive.number} of term {directive.term}")
    return tuple(notes)
