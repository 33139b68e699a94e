"""Make a change: read, plan, and write in one transaction that is guarded by what was read.

Every change also guards the head, so that no two changes are planned against the same state:
one that adds a route to a region cannot meet one that removes the region. Where only the head
has moved, the plan is made again; where somebody changed the very same resource, the caller is
told.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence

import msgspec
from msgspec import Struct

from control_plane import keys, rollout_record
from control_plane.catalog import Catalog
from control_plane.changes import history, staging
from control_plane.changes.archive import Archive
from control_plane.changes.errors import ChangeConflict, ChangeRefused
from control_plane.changes.plan import Base, Knowledge, Plan, Wanted, make_plan, nothing, told
from control_plane.directives.state import Outlook, State
from control_plane.store.base import MAX_OPERATIONS, Delete, Guard, Operation, Put, Store
from control_plane.store.errors import Conflict, StoreUnavailable
from runtime import logs
from runtime.clock import Clock
from runtime.validation import InvalidDocument, Problem
from topology import resources as res
from topology.resources import Resource

log = logs.get("changes")

# Beside the resources: what history writes and drops, and the rollout. (Guards are fewer: the head
# and the rollout.) etcd takes 128 operations in a transaction unless it is started with more, and
# several transactions would show nodes half of a change.
MAX_RESOURCES = MAX_OPERATIONS - history.OPERATIONS - 1
_ATTEMPTS = 8
_CONFIRM_S = 2.0  # how long to look for the outcome of a transaction whose answer was lost
_READ_OWN_WRITE_S = 1.0

Allow = Callable[[Plan], None]  # raises where the plan is not the caller's to make
_Make = Callable[[Base], Awaitable[Plan]]


class Applied(Struct, frozen=True):
    """What came of a change. `revision`: the store's after it; where nothing differed, before."""

    plan: Plan
    applied: bool
    revision: int


class Changes:
    """Plans and applies changes for one replica.

    `outlook` and `state` are what the director last saw and decided: the forecast goes by them.
    `keep`: of how many changes history and audit are kept.
    """

    def __init__(
        self,
        store: Store,
        catalog: Catalog,
        clock: Clock,
        replica: str,
        outlook: Callable[[], Outlook] = Outlook,
        state: Callable[[], State] = State,
        keep: int = history.KEEP,
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._clock = clock
        self._replica = replica
        self._outlook = outlook
        self._state = state
        self._keep = keep
        self.archive = Archive(store)
        # Writers at one replica wait for each other; those at different ones compete.
        self._turn = asyncio.Lock()
        # Plans are made beside the event loop, which has leases to renew; one at a time.
        self._planning = asyncio.Lock()

    async def resources(self) -> tuple[Resource, ...]:
        """What the store holds, read now."""
        return tuple((await self._read()).resources.values())

    async def plan(self, wanted: Wanted) -> Plan:
        """What would happen. Raises what `apply` raises, but never `ChangeRefused`."""
        return await self._planned(await self._base(), wanted)

    async def apply(
        self,
        wanted: Wanted,
        author: str,
        allow: Allow = lambda _: None,
        guards: Sequence[Guard] = (),
        also: Sequence[Operation] = (),
    ) -> Applied:
        """Make the change whole or not at all.

        `guards` must hold as well, and `also` is done in the same transaction (one operation at
        most, where the change may be large). Raises `InvalidDocument`, `UnknownResource`,
        `ChangeRefused`, `ChangeConflict`, `StoreUnavailable`, `Conflict` where one of `guards`
        does not hold, and what `allow` raises.
        """

        async def make(base: Base) -> Plan:
            return await self._planned(base, wanted)

        async with self._turn:
            return await self._apply(make, author, allow, _ATTEMPTS, guards, also)

    async def note(
        self, reason: str, author: str, guards: Sequence[Guard], also: Sequence[Operation]
    ) -> Applied:
        """Do `also`, which changes no resource, and keep who did it and why: a change of nothing.

        Raises `Conflict` where one of `guards` does not hold, `ChangeConflict` and
        `StoreUnavailable`.
        """

        async def make(base: Base) -> Plan:
            return nothing(base, Wanted(reason=reason))

        async with self._turn:
            return await self._apply(make, author, lambda _: None, _ATTEMPTS, guards, also)

    async def plan_rollback(self, revision: int, wanted: Wanted) -> Plan:
        """What would make everything as it was after the change at `revision`, Overrides excepted.

        Of `wanted`, `force`, `reason` and `immediate` count. Raises `UnknownRevision` and
        `HistoryDamaged` too.
        """
        return await self._planned_rollback(await self._base(), revision, wanted)

    async def roll_back(
        self, revision: int, wanted: Wanted, author: str, allow: Allow = lambda _: None
    ) -> Applied:
        """Carry that out. A change that comes in meanwhile is not undone along with the others:
        it is a `ChangeConflict`."""

        async def make(base: Base) -> Plan:
            return await self._planned_rollback(base, revision, wanted)

        async with self._turn:
            return await self._apply(make, author, allow, 1)

    async def _read(self) -> Base:
        listing = await self._store.list(keys.RESOURCES)
        view = self._catalog.view
        # A store that was restored from a backup may give a revision a second time.
        followed = view.stale_since_s is None and not view.problems
        known = view.snapshot if followed else None
        return await asyncio.to_thread(Base.of, listing, known, view.snapshot)

    async def _base(self) -> Base:
        base = await self._read()
        if not base.head_lost:
            return base
        head = await self.archive.mended()
        if base.head_revision or head.number:
            log.error("the head was lost, and is taken from the audit", number=head.number)
        return msgspec.structs.replace(base, head=head)

    async def _planned(self, base: Base, wanted: Wanted) -> Plan:
        view = self._catalog.view
        knowledge = Knowledge(
            serving=view.snapshot if view.withheld else None,
            outlook=self._outlook(),
            state=self._state(),
        )
        async with self._planning:
            now_s = self._clock.wall()
            plan = await asyncio.to_thread(make_plan, base, wanted, knowledge, now_s)
        plan = staging.judged(plan)
        _check_size(plan)
        return plan

    async def _planned_rollback(self, base: Base, revision: int, wanted: Wanted) -> Plan:
        later = await self.archive.since(base.head, revision)
        found = await asyncio.to_thread(history.undo, base.resources, later)
        wanted = msgspec.structs.replace(wanted, puts=found.puts, removes=found.removes)
        if not found.puts and not found.removes:
            return nothing(base, wanted)
        return await self._planned(base, wanted)

    async def _apply(
        self,
        make: _Make,
        author: str,
        allow: Allow,
        attempts: int,
        guards: Sequence[Guard] = (),
        also: Sequence[Operation] = (),
    ) -> Applied:
        first: Base | None = None
        for _ in range(attempts):
            plan = await make(await self._base())
            first = first or plan.base
            _check_unmoved(plan, first)
            allow(plan)
            if plan.refusals:
                raise ChangeRefused(plan.refusals)
            if not plan.effective and not also:
                return Applied(plan, False, plan.base.revision)
            try:
                revision = await self._write(plan, author, guards, also)
            except Conflict as error:
                if any(guard.key in error.found for guard in guards):
                    raise
                continue  # plan again: what moved may not be ours
            await self._catalog.reached(revision, _READ_OWN_WRITE_S)
            return Applied(plan, True, revision)
        often = "others kept changing" if attempts > 1 else "somebody changed"
        raise ChangeConflict((), (f"{often} the configuration at the same time",))

    async def _write(
        self, plan: Plan, author: str, guards: Sequence[Guard], also: Sequence[Operation]
    ) -> int:
        now_s = self._clock.wall()
        change_id = secrets.token_hex(8)
        own, operations = _transaction(plan, change_id, author, self._replica, now_s, self._keep)
        if not any(operation.key == keys.ROLLOUT for operation in also):
            _stage(plan, author, now_s, own, operations)
        try:
            given = {guard.key for guard in guards}
            own = [guard for guard in own if guard.key not in given]
            revision = await self._store.transact([*own, *guards], [*operations, *also])
        except StoreUnavailable as error:
            if not error.ambiguous:
                raise
            revision = await self._outcome(plan, change_id, error)
        log.info(
            "changed",
            revision=revision,
            author=author,
            keys=[str(change.key) for change in plan.effective],
            forced=[refusal.rule for refusal in plan.forced],
        )
        return revision

    async def _outcome(self, plan: Plan, change_id: str, error: StoreUnavailable) -> int:
        """Find out whether a transaction whose answer was lost was made.

        Our history entry is proof that it was. Another's under our number is proof that it was
        not and cannot be: the head we guard has moved. Neither is no proof of anything.
        """
        path = keys.of_history(plan.base.head.number + 1)
        deadline = self._clock.now() + _CONFIRM_S
        while self._clock.now() < deadline:
            try:
                entry = await self._store.get(path)
            except StoreUnavailable:
                entry = None
            if entry is not None:
                if f'"id":"{change_id}"'.encode() in entry.value:
                    return entry.revision
                raise Conflict({keys.HEAD: entry.revision}, {keys.HEAD: plan.base.head_revision})
            await asyncio.sleep(0.1)
        raise error


def _check_size(plan: Plan) -> None:
    """In one transaction: the change, and where it joins a rollout, all that would be taken back
    with it."""
    if len(plan.effective) > MAX_RESOURCES:
        found = f"{len(plan.effective)} resources to change"
        allowed = f"at most {MAX_RESOURCES} in one transaction: apply it in parts"
        raise InvalidDocument([Problem("request", "", found, allowed)])
    together = len(staging.touched_with(plan))
    if together > MAX_RESOURCES:
        found = f"{together} resources together with the rollout that it would join"
        allowed = f"at most {MAX_RESOURCES}, to be taken back at once: wait for the rollout"
        raise InvalidDocument([Problem("request", "", found, allowed)])


def _transaction(
    plan: Plan, change_id: str, author: str, replica: str, now_s: float, keep: int
) -> tuple[list[Guard], list[Operation]]:
    guards = [Guard(keys.HEAD, plan.base.head_revision)]
    operations = history.records(plan, change_id, author, replica, now_s, keep)
    for change in plan.effective:
        path = keys.of_resource(change.key)
        guards.append(Guard(path, plan.base.revision_of(change.key)))
        if change.after is None:
            operations.append(Delete(path))
        else:
            value = res.encode(history.stored(change.after, author, now_s))
            operations.append(Put(path, value))
    return guards, operations


def _stage(
    plan: Plan, author: str, now_s: float, guards: list[Guard], operations: list[Operation]
) -> None:
    """Where the change is rolled out in stages, its record goes into the same transaction."""
    record = staging.record_of(plan, author, now_s)
    if record is not None:
        guards.append(Guard(keys.ROLLOUT, plan.base.rollout_revision))
        operations.append(Put(keys.ROLLOUT, rollout_record.encode(record)))


def _check_unmoved(plan: Plan, first: Base) -> None:
    """Planning again is fine only while what we change is as it was when we first looked."""
    moved = [
        change.key
        for change in plan.changes
        if plan.base.revision_of(change.key) != first.revision_of(change.key)
    ]
    if moved:
        lines = tuple(
            f"{told(plan.base, key)}: changed while yours was on its way" for key in moved
        )
        raise ChangeConflict(tuple(moved), lines)
