"""Drain, fail over, restore: an operator's word about a region, as a change like any other."""

from __future__ import annotations

from collections.abc import Iterable

from control_plane.changes.errors import UnknownResource
from control_plane.changes.plan import Wanted
from runtime.validation import InvalidDocument, Problem
from topology import resources as res
from topology.resources import ANY, Key, Resource


def set_override(
    region: str,
    action: str,
    reason: str,
    percent: float,
    expires_s: float | None,
    force: tuple[str, ...],
    now_s: float,
) -> Wanted:
    """One override per region, which the next one replaces. Raises `InvalidDocument`."""
    problems = _region_problems(region)
    if expires_s is not None and expires_s <= now_s:
        problems.append(Problem("request", "expires", "a time that has passed", "a time to come"))
    spec = {"region": region, "action": action, "reason": reason.strip(), "percent": percent}
    if expires_s is not None:
        spec["expires_s"] = expires_s
    try:
        resource = res.parse({"kind": "Override", "name": region, "spec": spec}, "request")
    except InvalidDocument as error:
        problems += [p for p in error.problems if p.path not in ("name", "spec.region")]
        raise InvalidDocument(problems) from error
    if problems:
        raise InvalidDocument(problems)
    return Wanted(puts=(resource,), force=force, reason=reason.strip())


def clear_override(held: Iterable[Resource], region: str, reason: str) -> Wanted:
    """Remove whatever overrides the region. Raises `InvalidDocument` and `UnknownResource`."""
    problems = _region_problems(region)
    if not reason.strip():
        problems.append(Problem("request", "reason", "nothing", "why, for those who look later"))
    if problems:
        raise InvalidDocument(problems)
    named: list[Key] = [
        resource.key
        for resource in held
        if resource.kind == "Override" and getattr(resource.spec, "region", None) == region
    ]
    if not named:
        raise UnknownResource(
            f"nothing overrides region {region}", hint="`tradewind region list` shows what does"
        )
    return Wanted(removes=tuple(sorted(named)), reason=reason.strip())


def _region_problems(region: str) -> list[Problem]:
    if region and region != ANY:
        return []
    return [Problem("request", "region", repr(region), "the name of one region: empty is not all")]
