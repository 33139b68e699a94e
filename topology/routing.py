"""Which regions may serve a request, in which order, and why not the others.

Pure: the edge calls it for every request that its cache cannot answer, and `tradewind explain`
calls it to say what an edge would do, so both give one answer. The order of the rules is the
order of authority: what the tenant's residency forbids nothing can allow; then what the route,
the tenant and the model allow; then operators' overrides; then what the edge sees is reachable.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

from msgspec import Struct

from topology.directive import NONE, Directive
from topology.resources import ANY, Key, ModelSpec, OverrideSpec, RouteSpec, TenantSpec
from topology.snapshot import Snapshot

# A region that nobody measured and no link describes still has to be sorted somewhere.
UNKNOWN_RTT_MS = 1_000.0


class RegionView(Struct, frozen=True):
    """What one edge sees of one region now. `rtt_ms` None: not measured yet."""

    reachable: bool
    rtt_ms: float | None = None


Views: TypeAlias = Mapping[str, RegionView]


class Candidate(Struct, frozen=True):
    """A region that may serve the request, best first in a `Decision`."""

    region: str
    rtt_ms: float
    path: str  # `direct`: relays come with the path monitor
    why: str


class Exclusion(Struct, frozen=True):
    """A region that may not, and the rule that said so."""

    region: str
    rule: str  # residency | route | model | override | unreachable
    why: str


class Decision(Struct, frozen=True):
    """`candidates` in the order to try them. Empty: `refusal` says what to tell the client."""

    candidates: tuple[Candidate, ...]
    excluded: tuple[Exclusion, ...]
    route: str = ""
    refusal: str = ""  # unknown_model | model_not_allowed | no_route | residency | no_region


def decide(
    snapshot: Snapshot,
    edge: str,
    tenant: str,
    model: str,
    views: Views,
    now_s: float,
    draw: float = 0.0,
    directive: Directive = NONE,
) -> Decision:
    """Order the regions for one request of `tenant` for `model` at `edge`.

    `now_s` is Unix time (overrides expire); `draw` in [0, 1) is the request's place in a partial
    drain: a region drained by 30% loses the requests that drew less than 0.3. `directive` is what
    the director told this edge last: where paced drains stand.
    """
    model_spec = snapshot.models.get(model)
    tenant_spec = snapshot.tenants.get(tenant)
    if model_spec is None:
        return Decision((), (), refusal="unknown_model")
    if tenant_spec is None or not selects(tenant_spec.models, model):
        return Decision((), (), refusal="model_not_allowed")
    found = route_for(snapshot, tenant, model)
    if found is None:
        return Decision((), (), refusal="no_route")
    name, route = found
    return _order(
        snapshot, edge, (name, route), model_spec, tenant_spec, views, now_s, draw, directive
    )


def selects(selectors: tuple[str, ...], name: str) -> bool:
    return ANY in selectors or name in selectors


def route_for(snapshot: Snapshot, tenant: str, model: str) -> tuple[str, RouteSpec] | None:
    """The narrowest route for a tenant and model: one that names the tenant outranks one that
    names the model, which outranks `*`; equals go by name."""
    best: tuple[tuple[bool, bool, str], str, RouteSpec] | None = None
    for name, route in snapshot.routes.items():
        if not (selects(route.tenants, tenant) and selects(route.models, model)):
            continue
        rank = (tenant not in route.tenants, model not in route.models, name)
        if best is None or rank < best[0]:
            best = (rank, name, route)
    return (best[1], best[2]) if best else None


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


def _order(
    snapshot: Snapshot,
    edge: str,
    named_route: tuple[str, RouteSpec],
    model: ModelSpec,
    tenant: TenantSpec,
    views: Views,
    now_s: float,
    draw: float,
    directive: Directive,
) -> Decision:
    route_name, route = named_route
    candidates: list[Candidate] = []
    excluded: list[Exclusion] = []
    for region, spec in snapshot.regions.items():
        exclusion = _exclusion(snapshot, region, spec.jurisdiction, route, model, tenant)
        if exclusion is None:
            exclusion = _override_exclusion(snapshot, region, now_s, draw, directive)
        view = views.get(region)
        if exclusion is None and view is not None and not view.reachable:
            exclusion = Exclusion(region, "unreachable", "this edge has no live path to it")
        if exclusion is not None:
            excluded.append(exclusion)
        else:
            candidates.append(_candidate(snapshot, edge, region, view))
    if route.prefer == "ordered":
        candidates.sort(key=lambda c: route.regions.index(c.region))
    else:
        candidates.sort(key=lambda c: (c.rtt_ms, c.region))
    refusal = "" if candidates else _refusal(excluded)
    return Decision(tuple(candidates), tuple(excluded), route_name, refusal)


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


def _override_exclusion(
    snapshot: Snapshot, region: str, now_s: float, draw: float, directive: Directive
) -> Exclusion | None:
    held = standing(snapshot, region, now_s, directive)
    if held is None or draw * 100.0 >= held.percent:
        return None
    verb = "drained" if held.override.action == "drain" else "failed over"
    return Exclusion(region, "override", f"{verb} ({held.percent:.3g}%): {held.override.reason}")


def _candidate(snapshot: Snapshot, edge: str, region: str, view: RegionView | None) -> Candidate:
    if view is not None and view.rtt_ms is not None:
        return Candidate(region, view.rtt_ms, "direct", f"measured {view.rtt_ms:.0f} ms away")
    link = snapshot.link(Key("EdgeSite", edge), Key("Region", region))
    if link is not None:
        return Candidate(region, link.rtt_ms, "direct", f"expected {link.rtt_ms:.0f} ms away")
    return Candidate(region, UNKNOWN_RTT_MS, "direct", "no link declares its distance")


def _refusal(excluded: list[Exclusion]) -> str:
    beyond_residency = [e for e in excluded if e.rule != "residency"]
    return "no_region" if beyond_residency else "residency"
