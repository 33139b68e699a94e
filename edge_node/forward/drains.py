"""Which drains have stood for so long that what still runs there is to go on elsewhere. Pure."""

from __future__ import annotations

from topology.directive import Directive
from topology.resources import OverrideSpec, Resource
from topology.routing import standing
from topology.snapshot import Snapshot


class Drains:
    """Of one edge worker: it remembers since when it has seen each drain to be full."""

    def __init__(self) -> None:
        self._full_since: dict[tuple[str, int], float] = {}  # name and revision -> Unix time

    def overdue(self, snapshot: Snapshot, directive: Directive, now_s: float) -> frozenset[str]:
        """Regions whose full drain or failover has passed its deadline; `now_s` is Unix time.

        One that is paced counts from when it was first seen to be full, others from when they
        were written, or from when they were seen where that was earlier.
        """
        full: dict[tuple[str, int], float] = {}
        regions = set()
        for resource in snapshot.of_kind("Override").values():
            spec: OverrideSpec = resource.spec  # type: ignore[assignment]  # it is of that kind
            if spec.deadline_s is None or not _is_full(snapshot, directive, spec, now_s):
                continue
            key = (resource.name, resource.revision)
            since = full[key] = self._full_since.get(key, _begun(resource, spec, now_s))
            if now_s - since >= spec.deadline_s:
                regions.add(spec.region)
        self._full_since = full
        return frozenset(regions)


def _begun(resource: Resource, spec: OverrideSpec, now_s: float) -> float:
    if spec.over_s > 0 or resource.time_s <= 0:
        return now_s
    return min(resource.time_s, now_s)


def _is_full(snapshot: Snapshot, directive: Directive, spec: OverrideSpec, now_s: float) -> bool:
    if spec.percent < 100.0 or (spec.expires_s is not None and spec.expires_s <= now_s):
        return False
    if spec.over_s <= 0:
        return True
    held = standing(snapshot, spec.region, now_s, directive)
    return held is not None and held.percent >= 100.0 and held.override is spec
