"""What a change would do, worked out before anything is done. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from control_plane import keys, rollout_record
from control_plane.catalog import decode_entry
from control_plane.changes import safety
from control_plane.changes.diff import FieldChange, field_changes
from control_plane.changes.errors import (
    EMPTY_SELECTOR,
    RULES,
    ChangeConflict,
    Refusal,
    UnknownResource,
)
from control_plane.changes.forecast import Forecast, forecast
from control_plane.directives.state import Outlook, State
from control_plane.rollout_record import RolloutRecord
from control_plane.store.base import Entry, Listing
from runtime.validation import InvalidDocument, Problem
from topology.resources import ANY, KINDS, Key, Resource
from topology.snapshot import Snapshot

Action = Literal["create", "update", "delete", "unchanged"]


NEW = -1
_NO_OUTLOOK = Outlook()
_NO_STATE = State()


class Head(Struct, frozen=True):
    """The last change that was made: its number, from 1, and an id that no other change has.

    `hash` is that of its audit entry, and `oldest` the number of the oldest change of which
    history and audit are kept. Both are missing where an earlier version wrote the head.
    """

    number: Annotated[int, Meta(ge=0, lt=10**12)] = 0
    id: str = ""
    hash: str = ""
    oldest: Annotated[int, Meta(ge=1)] = 1


class Wanted(Struct, frozen=True):
    """What somebody asks for.

    A put whose `revision` is not 0 must still be at that revision; where it is `NEW`, there must
    not be such a resource yet. `prune` also removes what
    `puts` leaves out of the kinds it names, but never an Override.
    """

    puts: tuple[Resource, ...] = ()
    removes: tuple[Key, ...] = ()
    prune: bool = False
    force: tuple[str, ...] = ()
    reason: str = ""
    immediate: bool = False  # to all nodes at once, whatever Policy says of rollouts


class Knowledge(Struct, frozen=True):
    """What else a plan goes by, as this replica knows it.

    `serving` is what nodes run on where that is not what the store holds (it was wiped): the
    safety rules judge the change by it. The forecast is made of `outlook` and `state`.
    """

    serving: Snapshot | None = None
    outlook: Outlook = _NO_OUTLOOK
    state: State = _NO_STATE


class Base(Struct, frozen=True):
    """What a change is planned against: the store as it is."""

    revision: int
    entries: Mapping[str, Entry]  # by key in the store, the head excepted
    resources: Mapping[Key, Resource]  # those entries that are resources, or were: see `damaged`
    head: Head
    head_revision: int  # 0: there is no head yet
    head_lost: bool = False  # there is none, or somebody else wrote over it: audit knows it
    rollout: RolloutRecord | None = None  # the last staged one, under way or over
    rollout_revision: int = 0  # 0: there is none
    # What somebody else wrote over it is no resource. Nodes go on with the last good one, and so
    # do plans about other things; a put over it mends it, even where nothing differs.
    damaged: frozenset[Key] = frozenset()

    @classmethod
    def of(
        cls, listing: Listing, known: Snapshot | None = None, last_good: Snapshot | None = None
    ) -> Base:
        """`known` holds some of the same resources at some revisions: those are not read again.
        Those of `last_good` stand in for what is damaged."""
        entries = {entry.key: entry for entry in listing.entries}
        head_entry = entries.pop(keys.HEAD, None)
        head = head_of(head_entry)
        rollout, rollout_revision = _rollout(entries.pop(keys.ROLLOUT, None))
        resources, damaged = {}, set()
        for entry in entries.values():
            held = known.get(keys.resource_at(entry.key)) if known is not None else None
            if held is not None and held.revision == entry.revision:
                resources[held.key] = held
                continue
            try:
                resource = decode_entry(entry)
            except InvalidDocument:  # `tradewind status` shows it
                kept = last_good.get(keys.resource_at(entry.key)) if last_good is not None else None
                if kept is None:
                    continue
                resource = kept
                damaged.add(kept.key)
            resources[resource.key] = resource
        return cls(
            # As the catalog counts: the rollout moves on by itself, and changes no resource.
            revision=max((e.revision for e in listing.entries if e.key != keys.ROLLOUT), default=0),
            entries=entries,
            resources=resources,
            head=head or Head(),
            head_revision=head_entry.revision if head_entry else 0,
            head_lost=head is None,
            rollout=rollout,
            rollout_revision=rollout_revision,
            damaged=frozenset(damaged),
        )

    def revision_of(self, key: Key) -> int:
        entry = self.entries.get(keys.of_resource(key))
        return entry.revision if entry else 0


class Change(Struct, frozen=True):
    """One resource, before and after."""

    key: Key
    action: Action
    before: Resource | None
    after: Resource | None

    @property
    def fields(self) -> tuple[FieldChange, ...]:
        return () if self.action == "unchanged" else field_changes(self.before, self.after)


class Plan(Struct, frozen=True):
    """Everything that would happen, and why it should not. `changes` include what stays."""

    base: Base
    wanted: Wanted
    changes: tuple[Change, ...]
    refusals: tuple[Refusal, ...]  # those not overruled by `wanted.force`
    forced: tuple[Refusal, ...]  # those that were
    warnings: tuple[str, ...]
    forecast: Forecast = Forecast()
    staged: bool = False  # a rollout begins with it, or it joins one

    @property
    def effective(self) -> tuple[Change, ...]:
        return tuple(change for change in self.changes if change.action != "unchanged")


def make_plan(base: Base, wanted: Wanted, knowledge: Knowledge, now_s: float) -> Plan:
    """Plan `wanted` against the store.

    Raises `InvalidDocument`, `ChangeConflict`, `UnknownResource`.
    """
    _check(wanted)
    if not wanted.puts and not wanted.removes:
        return _of_nothing(base, wanted)
    _check_revisions(base, wanted, knowledge.serving)
    changes = [_put(base, resource) for resource in wanted.puts]
    changes += [_remove(base, key) for key in _removes(base, wanted)]
    before = Snapshot(base.revision, _by_kind(base.resources))
    after = _result(base, changes)
    serving = knowledge.serving or before
    loads = forecast(knowledge.outlook, knowledge.state, serving, after, now_s)
    found = safety.refusals(serving, after, now_s) + safety.over_capacity(loads)
    if knowledge.serving is not None:
        found += safety.withdrawn(knowledge.serving, after)
    return Plan(
        base=base,
        wanted=wanted,
        changes=tuple(changes),
        refusals=tuple(r for r in found if r.rule not in wanted.force),
        forced=tuple(r for r in found if r.rule in wanted.force),
        warnings=(*_warnings(after, changes), *_forecast_warnings(changes, loads)),
        forecast=loads,
    )


def nothing(base: Base, wanted: Wanted) -> Plan:
    """The plan of a change that changes nothing."""
    return Plan(base, wanted, (), (), (), ())


def _of_nothing(base: Base, wanted: Wanted) -> Plan:
    """Nothing is selected. That never means all; who forces it changes nothing."""
    found = Refusal(EMPTY_SELECTOR, "nothing is named to change, and empty is not all")
    if EMPTY_SELECTOR in wanted.force:
        return Plan(base, wanted, (), (), (found,), ())
    return Plan(base, wanted, (), (found,), (), ())


def _forecast_warnings(changes: list[Change], loads: Forecast) -> tuple[str, ...]:
    moves = any(_moves_load(change) for change in changes)
    if loads.unknown and moves:
        return (f"no forecast of the load per region: {loads.unknown}",)
    told = [
        f"{load.region} would be {load.strains:.0%} full by what its cores report now "
        f"({load.utilisation:.0%} at {load.now:,.0f} tokens/s): is its declared capacity right?"
        for load in loads.regions
        if load.strains is not None
    ]
    if loads.unserved > 0.5:
        told.append(f"{loads.unserved:,.0f} tokens/s that are served now would have no region")
    return tuple(told)


def _moves_load(change: Change) -> bool:
    """Whether it may take load away from where it is. What is new takes none."""
    before, after = change.before, change.after
    if before is not None and after is not None and before.spec == after.spec:
        return False  # unchanged, or what was damaged is mended
    return change.key.kind == "Override" or (
        change.key.kind in ("Region", "Model", "Route") and change.before is not None
    )


def _check(wanted: Wanted) -> None:
    problems = []
    for key in wanted.removes:
        if key.kind not in KINDS:
            problems.append(Problem("request", "kind", repr(key.kind), ", ".join(KINDS)))
        if not key.name or key.name == ANY:
            problems.append(Problem("request", "name", repr(key.name), "the name of one resource"))
    named = [resource.key for resource in wanted.puts] + list(wanted.removes)
    for key in (key for key, count in Counter(named).items() if count > 1):
        problems.append(Problem("request", "", f"{key} more than once", "each resource once"))
    for rule in wanted.force:
        if rule not in RULES:
            problems.append(Problem("request", "force", repr(rule), ", ".join(RULES)))
    if problems:
        raise InvalidDocument(problems)


def _check_revisions(base: Base, wanted: Wanted, serving: Snapshot | None) -> None:
    wrong = [
        resource.key
        for resource in wanted.puts
        if (
            resource.revision not in (0, NEW)
            and resource.revision != base.revision_of(resource.key)
            and not _is_brought_back(base, resource, serving)
        )
        or (resource.revision == NEW and resource.key in base.resources)
    ]
    if wrong:
        asked = {resource.key: resource.revision for resource in wanted.puts}
        lines = tuple(
            f"{told(base, key)}; yours is {'new' if asked[key] == NEW else asked[key]}"
            for key in wrong
        )
        raise ChangeConflict(tuple(wrong), lines)


def _is_brought_back(base: Base, resource: Resource, serving: Snapshot | None) -> bool:
    """Whether, into a store that was wiped, it comes as `tradewind get` shows it."""
    held = serving.get(resource.key) if serving is not None else None
    gone = not base.revision_of(resource.key)
    return gone and held is not None and held.revision == resource.revision


def told(base: Base, key: Key) -> str:
    """A line that says where a resource stands now and who put it there."""
    revision = base.revision_of(key)
    if not revision:
        return f"{key} does not exist any more"
    resource = base.resources.get(key)
    by = f" by {resource.author}" if resource is not None and resource.author else ""
    return f"{key} is at revision {revision}{by}"


def _put(base: Base, resource: Resource) -> Change:
    before = base.resources.get(resource.key)
    if before is None:
        exists = base.revision_of(resource.key) > 0  # there is something, and it is no resource
        return Change(resource.key, "update" if exists else "create", None, resource)
    same = before.spec == resource.spec and resource.key not in base.damaged
    return Change(resource.key, "unchanged" if same else "update", before, resource)


def _removes(base: Base, wanted: Wanted) -> list[Key]:
    removes = list(wanted.removes)
    missing = [str(key) for key in removes if not base.revision_of(key)]
    if missing:
        raise UnknownResource(
            f"there is no {', '.join(missing)}", hint="`tradewind get KIND` lists what there is"
        )
    if wanted.prune:
        kept = {resource.key for resource in wanted.puts}
        kinds = {key.kind for key in kept} - {"Override"}
        removes += sorted(
            key for key in base.resources if key.kind in kinds and key not in kept | set(removes)
        )
    return removes


def _remove(base: Base, key: Key) -> Change:
    return Change(key, "delete", base.resources.get(key), None)


def _result(base: Base, changes: list[Change]) -> Snapshot:
    """The snapshot after the change, or `InvalidDocument` if it does not fit together."""
    held = dict(base.resources)
    for change in changes:
        if change.after is None:
            held.pop(change.key, None)
        else:
            held[change.key] = change.after
    return Snapshot.build(base.revision, held.values())


def _by_kind(resources: Mapping[Key, Resource]) -> dict[str, dict[str, Resource]]:
    """As `Snapshot` wants it: what is in the store is compared, not checked again."""
    by_kind: dict[str, dict[str, Resource]] = {kind: {} for kind in KINDS}
    for key, resource in resources.items():
        by_kind[key.kind][key.name] = resource
    return by_kind


def _warnings(after: Snapshot, changes: list[Change]) -> tuple[str, ...]:
    """What is allowed and probably not meant."""
    out = []
    for change in changes:
        spec = after.tenants.get(change.key.name) if change.key.kind == "Tenant" else None
        if change.action not in ("create", "update") or spec is None:
            continue
        if not spec.api_keys:
            out.append(f"{change.key} has no API key: nobody can use it")
        homes = {region.jurisdiction for region in after.regions.values()}
        if spec.residency is not None and not homes & set(spec.residency):
            out.append(f"{change.key}: no region lies in {', '.join(spec.residency)}")
    return tuple(out)


def head_of(entry: Entry | None) -> Head | None:
    """The head in an entry; None where there is none, or what is there is none."""
    if entry is None:
        return None
    try:
        return msgspec.json.decode(entry.value, type=Head)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _rollout(entry: Entry | None) -> tuple[RolloutRecord | None, int]:
    """A damaged one counts as none, as for the catalog; its revision is guarded all the same."""
    if entry is None:
        return None, 0
    try:
        return rollout_record.decode(entry.value, entry.revision), entry.revision
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None, entry.revision
