"""Demand classes: requests that may go to the same regions and yield to the same others. Pure.

The director spreads demand by class and not by tenant, since there are few of the former and
there may be thousands of the latter. An edge and the director work out the class of a tenant
and model alike, from the same snapshot.
"""

from __future__ import annotations

from msgspec import Struct

from topology.routing import route_for, selects
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


def demand_class(snapshot: Snapshot, tenant: str, model: str) -> DemandClass | None:
    """The class of a tenant's requests for a model; None where nothing may serve them at all."""
    tenant_spec, model_spec = snapshot.tenants.get(tenant), snapshot.models.get(model)
    if tenant_spec is None or model_spec is None or not selects(tenant_spec.models, model):
        return None
    found = route_for(snapshot, tenant, model)
    if found is None:
        return None
    route = found[1]
    allowed = [
        name
        for name in route.regions
        if name in model_spec.regions
        and name in snapshot.regions
        and (
            tenant_spec.residency is None
            or snapshot.regions[name].jurisdiction in tenant_spec.residency
        )
    ]
    if not allowed:
        return None
    ordered = route.prefer == "ordered" and len(allowed) > 1
    return DemandClass(tenant_spec.tier, tuple(allowed if ordered else sorted(allowed)), ordered)
