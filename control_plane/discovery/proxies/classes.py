"""Which demand class each tenant's requests for each model are of, or why none. Pure.

There may be thousands of tenants, but few that differ in what they may: each kind of tenant is
worked out once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from msgspec import Struct

from topology.demand import DemandClass, demand_class
from topology.resources import ANY
from topology.routing import route_for, selects
from topology.snapshot import Snapshot

Destination: TypeAlias = "DemandClass | str"  # or why there is none: a rule's name


class Kind(Struct, frozen=True):
    """What tenants of one kind may: model -> destination, and how long they wait."""

    destinations: dict[str, Destination]
    deadline_ms: int

    @property
    def classes(self) -> tuple[DemandClass, ...]:
        """The classes that there are, in the order of the models' names."""
        found = (d for d in self.destinations.values() if isinstance(d, DemandClass))
        return tuple(dict.fromkeys(found))

    @property
    def only(self) -> DemandClass | None:
        """Where a request goes whatever its model; None where that depends on the model."""
        classes = self.classes
        return classes[0] if len(classes) == 1 else None


def kinds(snapshot: Snapshot, tenants: Iterable[str]) -> dict[str, Kind]:
    """Tenant -> kind, for those of `tenants` that exist. Tenants of a kind share one object."""
    named: dict[str, list[str]] = {}
    for name, route in snapshot.routes.items():
        for tenant in route.tenants:
            if tenant != ANY:
                named.setdefault(tenant, []).append(name)
    known: dict[object, Kind] = {}
    out: dict[str, Kind] = {}
    for tenant in tenants:
        spec = snapshot.tenants.get(tenant)
        if spec is None:
            continue
        routes = tuple(named.get(tenant, ()))
        key = (spec.tier, spec.residency, spec.models, spec.deadline_ms, routes)
        if key not in known:
            models = sorted(snapshot.models)
            destinations = {model: _destination(snapshot, tenant, model) for model in models}
            known[key] = Kind(destinations, spec.deadline_ms)
        out[tenant] = known[key]
    return out


def _destination(snapshot: Snapshot, tenant: str, model: str) -> Destination:
    found = demand_class(snapshot, tenant, model)
    if found is not None:
        return found
    if not selects(snapshot.tenants[tenant].models, model):
        return "model_not_allowed"
    return "residency" if route_for(snapshot, tenant, model) is not None else "no_route"
