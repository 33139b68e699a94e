"""Demand classes: requests that may go to the same regions and yield to the same others. Pure.

The director spreads demand by class and not by tenant, since there are few of the former and
there may be thousands of the latter. An edge and the director work out the class of a tenant
and model alike, from the same snapshot.
"""

from __future__ import annotations

from msgspec import Struct

from topology.resources import ANY, ModelSpec, RouteSpec, TenantSpec
from topology.snapshot import Snapshot


class DemandClass(Struct, frozen=True, order=True):
    """`regions`: those that route, model and residency allow, by name; by rank if `ordered`."""

    tier: str  # vip | standard | batch
    regions: tuple[str, ...]
    ordered: bool = False

    def __str__(self) -> str:
        return f"{self.tier}:" + (">" if self.ordered else "|").join(self.regions)

    @classmethod
    def parse(cls, text: str) -> DemandClass:
        """The reverse of `str`."""
        tier, _, rest = text.partition(":")
        ordered = ">" in rest
        regions = tuple(rest.split(">" if ordered else "|")) if rest else ()
        return cls(tier, regions, ordered)


def selects(selectors: tuple[str, ...], name: str) -> bool:
    return ANY in selectors or name in selectors


def route_for(snapshot: Snapshot, tenant: str, model: str) -> tuple[str, RouteSpec] | None:
    """The narrowest route for a tenant and model: one that names the tenant outranks one that
    names the model, which outranks `*`; equals go by name."""
    # There may be thousands, and every request asks.
    for routes in (snapshot.routes_of(tenant), snapshot.routes_of(ANY)):
        ranked = (
            (model not in route.models, name)
            for name, route in routes.items()
            if selects(route.models, model)
        )
        best = min(ranked, default=None)
        if best is not None:
            return best[1], routes[best[1]]
    return None


def demand_class(snapshot: Snapshot, tenant: str, model: str) -> DemandClass | None:
    """The class of a tenant's requests for a model; None where nothing may serve them at all."""
    tenant_spec, model_spec = snapshot.tenants.get(tenant), snapshot.models.get(model)
    if tenant_spec is None or model_spec is None or not selects(tenant_spec.models, model):
        return None
    found = route_for(snapshot, tenant, model)
    return class_of(snapshot, found[1], model_spec, tenant_spec) if found is not None else None


def class_of(
    snapshot: Snapshot, route: RouteSpec, model: ModelSpec, tenant: TenantSpec
) -> DemandClass | None:
    """The class of what `route` carries; None where no region is left."""
    regions = snapshot.regions
    allowed = [
        name
        for name in route.regions
        if name in model.regions
        and name in regions
        and (tenant.residency is None or regions[name].jurisdiction in tenant.residency)
    ]
    if not allowed:
        return None
    ordered = route.prefer == "ordered" and len(allowed) > 1
    return DemandClass(tenant.tier, tuple(allowed if ordered else sorted(allowed)), ordered)
