"""Where a client's request goes and why, by the same rules that DNS and the edges use. Pure.

It says what the configuration decides. What an edge measures and what DNS probes (which edge is
healthy, which region is reachable, how far it is now) it does not know, and says so.
"""

from __future__ import annotations

import ipaddress

from msgspec import Struct

from control_plane.geodns.policy import Choice, choose_edges, spread_of
from runtime.validation import InvalidDocument, Problem
from topology.errors import UnknownName
from topology.geo import Address, Locator, Place
from topology.latency import published_rtt_ms
from topology.resources import Key
from topology.routing import Decision, RegionView, decide
from topology.snapshot import Snapshot


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


class Explanation(Struct, frozen=True):
    """Everything that decides, in order."""

    answer: EdgeAnswer
    decision: Decision
    refusal: str  # for people; empty: served
    notes: tuple[str, ...]


def explain(snapshot: Snapshot, locator: Locator, question: Question, now_s: float) -> Explanation:
    """Raises `InvalidDocument` and `UnknownName`."""
    for what, value in (("tenant", question.tenant), ("model", question.model)):
        if not value:
            raise InvalidDocument([Problem("request", what, "nothing", f"the name of a {what}")])
    _known(snapshot, "Tenant", question.tenant)
    _known(snapshot, "Model", question.model)
    answer = _edge(snapshot, locator, question)
    views = _published_views(snapshot, answer.edge)
    decision = decide(snapshot, answer.edge, question.tenant, question.model, views, now_s)
    return Explanation(
        answer=answer,
        decision=decision,
        refusal=_refusal(question, decision),
        notes=_notes(snapshot, answer, now_s),
    )


def _known(snapshot: Snapshot, kind: str, name: str) -> None:
    held = snapshot.of_kind(kind)
    if name not in held:
        have = ", ".join(sorted(held)) or "none is defined"
        raise UnknownName(f"no {kind} {name!r}", hint=f"there is: {have}")


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
    have = ", ".join(full) or "none: apply a Zone first"
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


def _refusal(question: Question, decision: Decision) -> str:
    tenant, model = question.tenant, question.model
    said = {
        "": "",
        "unknown_model": f"no model {model!r}",
        "model_not_allowed": f"tenant {tenant} may not use {model}",
        "no_route": f"no route covers tenant {tenant} and model {model}",
        "residency": f"no region lies where the data of {tenant} must stay",
        "no_region": "every region that may serve it is taken out",
    }
    return said.get(decision.refusal, decision.refusal)


def _notes(snapshot: Snapshot, answer: EdgeAnswer, now_s: float) -> tuple[str, ...]:
    notes = ["distances are published ones; the edge goes by what it measures, and may differ"]
    if answer.choice is not None and len(answer.choice.edges) > 1:
        notes.append(
            f"DNS answers with {', '.join(answer.choice.edges)}; clients mostly take the "
            "first. An edge that fails its health checks is left out"
        )
    for name, override in snapshot.overrides.items():
        live = override.expires_s is None or override.expires_s > now_s
        if live and 0 < override.percent < 100:
            notes.append(
                f"Override/{name} takes {override.percent:g}% of requests away from "
                f"{override.region}: this explains one of those that it takes away"
            )
    return tuple(notes)
