"""Changes that are well-formed and would do harm: each rule says what would happen.

Pure. A rule compares what is served now with what would be served after the change:

- `residency`: a tenant whose data must stay somewhere would have no region left there, for all of
  its requests or for the part that a drain takes.
- `last-region`: the same for a route.
- `many`: more than 30% of the resources of a kind (of more than 3) would change or go.
- `capacity`: a region would get more load than it has capacity for, by the forecast.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from control_plane.changes.errors import CAPACITY, LAST_REGION, MANY, RESIDENCY, Refusal
from control_plane.changes.forecast import Forecast
from topology.resources import KINDS, Key
from topology.routing import route_for, selects
from topology.snapshot import Snapshot

MANY_SHARE = 0.30
FEW = 3  # of so few resources, any change touches a large share
_NAMED = 5


def refusals(before: Snapshot, after: Snapshot, now_s: float) -> tuple[Refusal, ...]:
    """What the change from `before` to `after` would be refused for."""
    taken_before, taken = _taken(before, now_s), _taken(after, now_s)
    return (
        *_residency(before, after, taken_before, taken),
        *_last_region(before, after, taken_before, taken),
        *_many(before, after),
    )


def withdrawn(serving: Snapshot, after: Snapshot) -> tuple[Refusal, ...]:
    """For a store that was wiped: what nodes still run on and would lose by this change."""
    lost = [str(resource.key) for resource in serving if after.get(resource.key) is None]
    if not lost:
        return ()
    message = (
        f"the store was wiped, nodes run on revision {serving.revision}, and this change would "
        f"withdraw the rest of it: {_named(lost)}; apply everything at once instead"
    )
    return (Refusal(MANY, message),)


def over_capacity(found: Forecast) -> tuple[Refusal, ...]:
    """What a change would be refused for because of the load it would move."""
    over = [load for load in found.regions if load.overloads]
    if not over:
        return ()
    told = ", ".join(
        f"{load.region} would get {load.after:,.0f} of {load.capacity:,.0f} tokens/s "
        f"(without the change: {load.baseline:,.0f})"
        for load in over[:_NAMED]
    )
    more = f" and {len(over) - _NAMED} more" if len(over) > _NAMED else ""
    return (Refusal(CAPACITY, f"more load than capacity: {told}{more}"),)


def _taken(snapshot: Snapshot, now_s: float) -> dict[str, float]:
    """Region -> percent of its requests that overrides take away.

    A paced override counts by where it begins and by where it goes: a region that requests are
    to return to, over a time, takes none of them yet.
    """
    taken: dict[str, float] = {}
    for spec in snapshot.overrides.values():
        if spec.expires_s is None or spec.expires_s > now_s:
            percent = max(spec.percent, spec.from_percent if spec.over_s > 0 else 0.0)
            taken[spec.region] = max(taken.get(spec.region, 0.0), percent)
    return taken


def _served(regions: Iterable[str], taken: Mapping[str, float]) -> float:
    """The percentage of requests that at least one of `regions` takes. A request draws once: what
    two half-drained regions leave to each other is the same half."""
    return max((100.0 - taken.get(region, 0.0) for region in regions), default=0.0)


def _open(regions: Iterable[str], taken: Mapping[str, float]) -> tuple[str, ...]:
    return tuple(sorted(region for region in regions if taken.get(region, 0.0) < 100.0))


def _residency(
    before: Snapshot, after: Snapshot, taken_before: dict[str, float], taken: dict[str, float]
) -> Iterator[Refusal]:
    harmed: dict[tuple[tuple[str, ...], float], list[str]] = {}
    allowed_before, allowed = _Allowed(before), _Allowed(after)
    same_map = taken_before == taken and all(
        dict(before.of_kind(kind)) == dict(after.of_kind(kind))
        for kind in ("Region", "Model", "Route")
    )
    for tenant, spec in after.tenants.items():
        earlier = before.tenants.get(tenant)
        if spec.residency is None or earlier is None or (same_map and earlier == spec):
            continue
        for model in after.models:
            had = allowed_before(tenant, model)
            served = _served(allowed(tenant, model), taken)
            if served < _served(had, taken_before):
                named = f"{tenant} (data stays in {', '.join(spec.residency)})"
                harmed.setdefault((_open(had, taken_before), served), []).append(named)
                break
    for (lost, served), tenants in harmed.items():
        part = "their requests" if served == 0.0 else f"{100.0 - served:g}% of their requests"
        yield Refusal(
            RESIDENCY,
            f"{_named(lost)} is all that the residency of {_named(tenants)} allows: "
            f"{part} would be refused",
        )


class _Allowed:
    """The regions that may serve a tenant's requests for a model, whatever their state. Worked
    out once for all tenants that are alike: there are thousands."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._known: dict[tuple[str, str, tuple[str, ...] | None], frozenset[str]] = {}

    def __call__(self, tenant: str, model: str) -> frozenset[str]:
        snapshot = self._snapshot
        spec = snapshot.tenants.get(tenant)
        if spec is None or model not in snapshot.models or not selects(spec.models, model):
            return frozenset()
        found = route_for(snapshot, tenant, model)
        if found is None:
            return frozenset()
        key = (found[0], model, spec.residency)
        regions = self._known.get(key)
        if regions is None:
            regions = self._known[key] = self._regions(*key)
        return regions

    def _regions(self, route: str, model: str, residency: tuple[str, ...] | None) -> frozenset[str]:
        there = self._snapshot.regions
        regions = frozenset(self._snapshot.routes[route].regions)
        regions &= frozenset(self._snapshot.models[model].regions)
        if residency is None:
            return regions
        return frozenset(r for r in regions if r in there and there[r].jurisdiction in residency)


def _last_region(
    before: Snapshot, after: Snapshot, taken_before: dict[str, float], taken: dict[str, float]
) -> Iterator[Refusal]:
    harmed: dict[tuple[tuple[str, ...], float], list[str]] = {}
    for route, spec in after.routes.items():
        earlier = before.routes.get(route)
        had = earlier.regions if earlier else ()
        served = _served(spec.regions, taken)
        if served < _served(had, taken_before):
            harmed.setdefault((_open(had, taken_before), served), []).append(f"Route/{route}")
    for (left, served), routes in harmed.items():
        has, their = ("has", "its") if len(routes) == 1 else ("have", "their")
        lost = f"{100.0 - served:g}% of {their} requests would be refused"
        if served == 0.0:
            lost = f"no region would serve {'it' if len(routes) == 1 else 'them'}"
        yield Refusal(
            LAST_REGION, f"{_named(left)} is all that {_named(routes)} {has} left: {lost}"
        )


def _many(before: Snapshot, after: Snapshot) -> Iterator[Refusal]:
    for kind in KINDS:
        held = before.of_kind(kind)
        touched = [name for name, old in held.items() if _differs(after, Key(kind, name), old.spec)]
        if len(held) > FEW and len(touched) > MANY_SHARE * len(held):
            yield Refusal(
                MANY,
                f"{len(touched)} of {len(held)} resources of kind {kind} would change or go "
                f"({_named(touched)}); more than {MANY_SHARE:.0%} at once",
            )


def _differs(after: Snapshot, key: Key, spec: object) -> bool:
    now = after.get(key)
    return now is None or now.spec != spec


def _named(names: list[str] | tuple[str, ...]) -> str:
    shown = ", ".join(names[:_NAMED])
    return f"{shown} and {len(names) - _NAMED} more" if len(names) > _NAMED else shown
