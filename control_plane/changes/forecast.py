"""What each region would carry once a change is in force, from the load as it is now. Pure.

What is known is the load by demand class and region (`Outlook.flows`). It is placed like this:

- A class's load stays where it is as far as its region remains allowed and open. Of a region that
  is drained by 30% and is to be drained by 65%, half of what is there leaves. Overrides count with
  what they aim at, paced ones too: the forecast is of the end.
- What has to leave goes to the other regions that the class may use, in proportion to the room
  they have left, as the director would spread it; classes with the fewest regions choose first.
  Where none has room, what is over goes to all of them by their capacity: somebody has to be
  overloaded, and the forecast says so. An `ordered` class fills its regions one after another.
- Nothing returns: that a region opens again relieves the others at a time and to an extent that
  the load alone does not tell.

A class of before may be several after (a route was split, a model moved). Loads of single tenants
are not known, so that a class's load is taken to be spread evenly over the tenants and models in
it; a class that no tenant is in any more keeps what is left of its regions.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from msgspec import Struct

from control_plane.directives.state import Outlook, State, directive_for
from topology.demand import DemandClass, demand_class
from topology.routing import active_override, standing
from topology.snapshot import Snapshot

FRESH_S = 60.0  # an older outlook says nothing about now
_NONE = Outlook()
_IDLE = State()

Portions = Mapping[DemandClass | None, float]


class RegionLoad(Struct, frozen=True):
    """One region, in tokens per second. `baseline`: what it would carry without the change, once
    the overrides that are there have got where they aim."""

    region: str
    now: float
    baseline: float
    after: float
    capacity: float  # after the change; 0: the region goes
    baseline_capacity: float
    utilisation: float | None = None  # of its cores now, by their own reports; 1 is full

    @property
    def overloads(self) -> bool:
        """The change puts it above its capacity, or further above."""
        over, was = self.after - self.capacity, self.baseline - self.baseline_capacity
        return over > _slack(self.capacity) and over > max(was, 0.0) + _slack(self.capacity)

    @property
    def strains(self) -> float | None:
        """How full its cores would be if their reports grow with the load, where that is too
        full and the change is what does it; the declared capacity may well be too high."""
        if self.utilisation is None or self.now <= _slack(self.capacity):
            return None
        would_be = self.utilisation * self.after / self.now
        more = self.after > self.baseline + _slack(self.capacity)
        return would_be if more and would_be > 1.0 and not self.overloads else None


class Forecast(Struct, frozen=True):
    """`unknown` says why nothing can be said; then `regions` have capacities alone."""

    regions: tuple[RegionLoad, ...] = ()
    unknown: str = ""
    unserved: float = 0.0  # tokens per second that no region might serve, of those served now


def forecast(
    outlook: Outlook, state: State, before: Snapshot, after: Snapshot, now_s: float
) -> Forecast:
    """`state` says where paced drains stand and which regions are down. `now_s` is Unix time."""
    unknown = _unknown(outlook, now_s)
    names = sorted({*before.regions, *after.regions})
    if unknown:
        return Forecast(tuple(_empty(name, before, after) for name in names), unknown)
    baseline, lost_before = _placed(outlook, state, before, before, now_s)
    loads, lost = _placed(outlook, state, before, after, now_s)
    measured: dict[str, float] = defaultdict(float)
    for flows in outlook.flows.values():
        for region, tokens in flows.items():
            measured[region] += tokens
    regions = tuple(
        RegionLoad(
            region=name,
            now=measured[name],
            baseline=baseline.get(name, 0.0),
            after=loads.get(name, 0.0),
            capacity=_capacity(after, name),
            baseline_capacity=_capacity(before, name),
            utilisation=outlook.utilisation.get(name),
        )
        for name in names
    )
    return Forecast(regions, unserved=max(0.0, lost - lost_before))


def _unknown(outlook: Outlook, now_s: float) -> str:
    if outlook == _NONE or not (outlook.flows or outlook.edges):
        return "no load has been reported"
    age_s = now_s - outlook.at_s
    if abs(age_s) > FRESH_S:
        when = f"{age_s:.0f} s old" if age_s > 0 else f"from {-age_s:.0f} s in the future"
        return f"the last load report is {when}"
    return ""


def _empty(name: str, before: Snapshot, after: Snapshot) -> RegionLoad:
    return RegionLoad(name, 0.0, 0.0, 0.0, _capacity(after, name), _capacity(before, name))


def _capacity(snapshot: Snapshot, region: str) -> float:
    spec = snapshot.regions.get(region)
    return spec.capacity_tokens_per_s if spec is not None else 0.0


def _placed(
    outlook: Outlook, state: State, now: Snapshot, then: Snapshot, now_s: float
) -> tuple[dict[str, float], float]:
    """Tokens per second by region under `then`, and those that have no region."""
    stays = _Stays(state, now, then, now_s)
    loads: dict[str, float] = defaultdict(float)
    leaving: list[tuple[DemandClass, dict[str, float]]] = []
    lost = 0.0
    becomes = _becomes(now, then)
    for text, flows in sorted(outlook.flows.items()):
        held = DemandClass.parse(text)
        for target, share in becomes.get(held, {held: 1.0}).items():
            if target is None:
                lost += share * sum(flows.values())
                continue
            moved: dict[str, float] = {}
            for region, tokens in flows.items():
                kept = share * tokens * stays.share(target, region)
                loads[region] += kept
                if share * tokens > kept:
                    moved[region] = share * tokens - kept
            if moved:
                leaving.append((target, moved))
    leaving.sort(key=lambda item: (len(stays.receivers(item[0])), item[0]))
    for target, moved in leaving:
        lost += _receive(loads, then, stays, target, moved)
    return loads, lost


class _Stays:
    """How much of what a region serves now it goes on serving under another snapshot.

    A request has a place between 0 and 100, the same at each region, and one that is drained by
    p% takes those from p on: what leaves one region may be what another does not take either.
    """

    def __init__(self, state: State, now: Snapshot, then: Snapshot, now_s: float) -> None:
        down = {region for region, verdict in state.verdicts.items() if not verdict.up}
        directive = directive_for(state, "")
        self._at: dict[str, float] = {}  # percent that is drained now
        self._aim: dict[str, float] = {}  # and will be
        for region in {*now.regions, *then.regions}:
            holds = standing(now, region, now_s, directive)
            target = active_override(then, region, now_s)
            self._at[region] = holds.percent if holds is not None else 0.0
            self._aim[region] = target.percent if target is not None else 0.0
            if region in down or region not in then.regions:
                self._aim[region] = 100.0

    def leaves(self, target: DemandClass, region: str) -> tuple[float, float]:
        """The places, from and to, of the requests that cannot stay in `region`."""
        at = self._at.get(region, 0.0)
        at = at if at < 100.0 else 0.0  # what is still there goes like all the rest
        aim = self._aim.get(region, 100.0) if region in target.regions else 100.0
        return at, max(at, aim)

    def share(self, target: DemandClass, region: str) -> float:
        at, aim = self.leaves(target, region)
        return (100.0 - aim) / (100.0 - at)

    def openness(self, region: str) -> float:
        return (100.0 - self._aim.get(region, 100.0)) / 100.0

    def receivers(self, target: DemandClass) -> list[str]:
        return [region for region in target.regions if self.openness(region) > 0.0]


def _receive(
    loads: dict[str, float],
    then: Snapshot,
    stays: _Stays,
    target: DemandClass,
    moved: Mapping[str, float],
) -> float:
    """Place what a class takes elsewhere; returns what has no place."""
    lost = 0.0
    for source, amount in sorted(moved.items()):
        others = [region for region in stays.receivers(target) if region != source]
        first, last = stays.leaves(target, source)
        taken_from = 100.0 * (1.0 - max(map(stays.openness, others), default=0.0))
        found = max(0.0, last - max(first, taken_from)) / (last - first) if last > first else 0.0
        lost += amount * (1.0 - found)
        _place(loads, then, stays, target.ordered, others, amount * found)
    return lost


def _place(
    loads: dict[str, float],
    then: Snapshot,
    stays: _Stays,
    ordered: bool,
    others: list[str],
    amount: float,
) -> None:
    room = {r: max(0.0, _capacity(then, r) * stays.openness(r) - loads[r]) for r in others}
    fits = min(amount, sum(room.values()))
    if ordered:
        left = fits
        for region in others:
            taken = min(left, room[region])
            loads[region] += taken
            left -= taken
    else:
        _spread(loads, room, fits)
    _spread(loads, {r: _capacity(then, r) * stays.openness(r) for r in others}, amount - fits)


def _spread(loads: dict[str, float], weights: Mapping[str, float], amount: float) -> None:
    whole = sum(weights.values())
    if amount <= 0.0 or whole <= 0.0:
        return
    for region, weight in weights.items():
        loads[region] += amount * weight / whole


def _becomes(now: Snapshot, then: Snapshot) -> dict[DemandClass, Portions]:
    """What each class of now is then, by the share of its tenants and models; None: refused."""
    if all(
        dict(now.of_kind(kind)) == dict(then.of_kind(kind))
        for kind in ("Region", "Model", "Route", "Tenant")
    ):
        return {}
    counts: dict[DemandClass, Counter[DemandClass | None]] = defaultdict(Counter)
    for tenant, number in _alike(now, then):
        for model in now.models:
            held = demand_class(now, tenant, model)
            if held is not None:
                counts[held][demand_class(then, tenant, model)] += number
    return {
        held: {target: count / found.total() for target, count in found.items()}
        for held, found in counts.items()
    }


def _alike(now: Snapshot, then: Snapshot) -> Iterable[tuple[str, int]]:
    """One tenant for all that no rule tells apart, and how many they are: there are thousands."""
    named = {t for s in (now, then) for route in s.routes.values() for t in route.tenants}
    groups: dict[object, tuple[str, int]] = {}
    for tenant, spec in now.tenants.items():
        later = then.tenants.get(tenant)
        group = (
            tenant if tenant in named else "",
            (spec.tier, spec.models, spec.residency),
            (later.tier, later.models, later.residency) if later is not None else None,
        )
        first, number = groups.get(group, (tenant, 0))
        groups[group] = (first, number + 1)
    return groups.values()


def _slack(capacity: float) -> float:
    """Rounding is no overload."""
    return 1e-6 * max(1.0, capacity)
