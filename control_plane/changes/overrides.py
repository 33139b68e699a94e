"""Drain, fail over, restore: an operator's word about regions, as a change like any other.

Several regions at once are one change. There is one override per region, named after it, and the
next one replaces it: where that is paced, it goes on from where the region stands.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from control_plane.changes.errors import UnknownResource
from control_plane.changes.plan import NEW, Wanted
from runtime.validation import InvalidDocument, Problem, check
from topology import resources as res
from topology.directive import NONE, Directive
from topology.fields import Name
from topology.resources import ANY, Key, Resource
from topology.routing import Standing, standing
from topology.snapshot import Snapshot

_ONE_REGION = "the name of one region, as `tradewind region list` has it: empty is not all"


class Order(Struct, frozen=True, kw_only=True):
    """What an operator asks for. `percent` of the requests of each region go elsewhere."""

    regions: tuple[str, ...]
    action: str  # drain | failover
    reason: str
    percent: float = 100.0
    expires_s: float | None = None  # Unix time
    over_s: float = 0.0  # 0: at once; else paced by the director
    deadline_s: float | None = None  # after which answers that still run there move, too
    force: tuple[str, ...] = ()


def set_override(
    order: Order, held: Iterable[Resource], directive: Directive, now_s: float
) -> Wanted:
    """The change that carries out `order`. Raises `InvalidDocument` with every mistake.

    `held` is what the store holds, and `directive` what the director last told edges: from both
    follows where each region stands, which is where a paced override begins.
    """
    overrides = _overrides(held)
    problems = _region_problems(order.regions)
    problems += _time_problems(order, now_s)
    puts: list[Resource] = []
    for region in dict.fromkeys(order.regions):
        now = _standing(overrides, region, directive, now_s)
        spec: dict[str, Any] = {
            "region": region,
            "action": order.action,
            "reason": order.reason.strip(),
            "percent": order.percent,
        }
        if order.expires_s is not None:
            spec["expires_s"] = order.expires_s
        if order.over_s:
            spec |= {"over_s": order.over_s, "from_percent": now.percent if now else 0.0}
        if order.deadline_s is not None:
            spec["deadline_s"] = order.deadline_s
        try:
            puts.append(_parsed(region, spec, overrides))
        except InvalidDocument as error:
            found = (p for p in error.problems if p.path not in ("name", "spec.region"))
            problems += (p for p in found if p not in problems)
    if problems:
        raise InvalidDocument(problems)
    named = {put.key for put in puts}
    others = [key for key in _keys_on(overrides, order.regions) if key not in named]
    return Wanted(
        puts=tuple(puts), removes=tuple(others), force=order.force, reason=order.reason.strip()
    )


def clear_override(
    regions: Sequence[str],
    reason: str,
    held: Iterable[Resource],
    directive: Directive = NONE,
    now_s: float = 0.0,
    *,
    over_s: float = 0.0,
    force: tuple[str, ...] = (),
) -> Wanted:
    """The change that lets requests return to `regions`: at once, by removing whatever overrides
    them, or with `over_s` by overrides that go to 0%, which the director then removes.

    Raises `InvalidDocument`, and `UnknownResource` where nothing overrides one of them.
    """
    overrides = _overrides(held)
    problems = _region_problems(regions)
    if not reason.strip():
        problems.append(Problem("request", "reason", "nothing", "why, for those who look later"))
    if problems:
        raise InvalidDocument(problems)
    free = [region for region in regions if not _keys_on(overrides, [region])]
    if free:
        raise UnknownResource(
            f"nothing overrides region {', '.join(free)}",
            hint="`tradewind region list` shows what does",
        )
    keys = _keys_on(overrides, regions)
    if not over_s:
        return Wanted(removes=tuple(keys), force=force, reason=reason.strip())
    puts = []
    for region in regions:
        now = _standing(overrides, region, directive, now_s)
        if now is None:
            continue  # whatever there is has expired: it only remains to be removed
        spec = msgspec.to_builtins(now.override)
        spec |= {"reason": reason.strip(), "percent": 0.0}
        spec |= {"over_s": over_s, "from_percent": now.percent}
        puts.append(_parsed(region, spec, overrides))
    named = {put.key for put in puts}
    removes = tuple(key for key in keys if key not in named)
    return Wanted(puts=tuple(puts), removes=removes, force=force, reason=reason.strip())


def _overrides(held: Iterable[Resource]) -> Snapshot:
    """Only the overrides, as something to ask where regions stand; not checked as a whole."""
    by_kind: dict[str, dict[str, Resource]] = {kind: {} for kind in res.KINDS}
    for resource in held:
        if resource.kind == "Override":
            by_kind["Override"][resource.name] = resource
    return Snapshot(0, by_kind)


def _standing(
    overrides: Snapshot, region: str, directive: Directive, now_s: float
) -> Standing | None:
    return standing(overrides, region, now_s, directive)


def _parsed(region: str, spec: Mapping[str, Any], overrides: Snapshot) -> Resource:
    """At the revision of the override that it replaces, or new: should another operator have put
    one there meanwhile, then ours begins where the region does not stand, and is refused."""
    there = overrides.get(Key("Override", region))
    document = {
        "kind": "Override",
        "name": region,
        "spec": dict(spec),
        "revision": there.revision if there else NEW,
    }
    return res.parse(document, "request")


def _keys_on(overrides: Snapshot, regions: Iterable[str]) -> list[Key]:
    wanted = set(regions)
    found = overrides.overrides.items()
    return sorted(Key("Override", name) for name, spec in found if spec.region in wanted)


def _region_problems(regions: Sequence[str]) -> list[Problem]:
    if not regions:
        return [Problem("request", "region", "none", "at least one region: empty is not all")]
    # One that is no name must not leave the others to be carried out without it.
    bad = [region for region in regions if region == ANY or check(region, Name, "request")]
    problems = [
        Problem("request", "region", repr(region[:80]), _ONE_REGION)
        for region in dict.fromkeys(bad)
    ]
    for region, count in Counter(regions).items():
        if count > 1:
            problems.append(Problem("request", "region", f"{region} twice", "each region once"))
    return problems


def _time_problems(order: Order, now_s: float) -> list[Problem]:
    problems = []
    if order.expires_s is not None and order.expires_s <= now_s:
        problems.append(Problem("request", "expires", "a time that has passed", "a time to come"))
    elif order.expires_s is not None and order.expires_s < now_s + order.over_s:
        found = f"{order.expires_s - now_s:.0f} s from now, before it gets there"
        problems.append(Problem("request", "expires", found, f"later than its {order.over_s:g} s"))
    if order.deadline_s is None:
        return problems
    if order.percent < 100.0:
        found = f"a deadline, of {order.percent:g}%"
        problems.append(Problem("request", "deadline", found, "one of a drain of 100%"))
    whole_s = order.over_s + order.deadline_s
    if not problems and order.expires_s is not None and order.expires_s < now_s + whole_s:
        found = f"{order.expires_s - now_s:.0f} s from now, before its deadline"
        problems.append(Problem("request", "expires", found, f"later than its {whole_s:g} s"))
    return problems
