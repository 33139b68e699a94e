"""The staged rollout that is under way: the operator's hand on it, and the director's.

Everything that is written is guarded by the revision of what was read, so that an operator and
the director, or two operators, never undo each other's word unseen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import msgspec

from control_plane import keys, rollout_record
from control_plane.catalog import Catalog
from control_plane.changes import rollout_steps, staging
from control_plane.changes.apply import Changes
from control_plane.changes.errors import RULES, ChangeConflict, UnknownResource
from control_plane.changes.plan import Wanted
from control_plane.directives.observed import Observed
from control_plane.rollout_record import Counts, RolloutRecord, Status
from control_plane.store.base import Guard, Put, Store
from control_plane.store.errors import Conflict
from runtime import logs
from runtime.clock import Clock
from runtime.validation import InvalidDocument, Problem
from topology.wire.gen.tradewind.v1 import admin_pb2 as pb

log = logs.get("rollouts")

ACTIONS = ("pause", "resume", "promote", "abort")
_ATTEMPTS = 5
_FRESH_S = 5.0  # for how long what all replicas see is believed
_READ_OWN_WRITE_S = 1.0
_WIPED = "STANDS STILL: the store was wiped; applying everything again gives all nodes the newest"


class Rollouts:
    """For one replica. `observe`: what it sees of the nodes by itself."""

    def __init__(
        self,
        store: Store,
        catalog: Catalog,
        changes: Changes,
        clock: Clock,
        replica: str,
        observe: Callable[[], Observed] | None = None,
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._changes = changes
        self._clock = clock
        self._replica = replica
        self._observe = observe
        self._seen: tuple[float, Observed] | None = None  # by all replicas, when this one directs

    def status(self) -> pb.Rollout:
        """The last rollout, under way or over, and how many nodes have it.

        Nodes are those that this replica knows; the director knows all.
        """
        view = self._catalog.view
        if view.rollout is None:
            return pb.Rollout()
        message = self._told(view.rollout)
        if view.withheld and view.rollout.under_way:
            message.why, message.next_step_s = _WIPED, 0.0
        return message

    async def control(self, action: str, reason: str, author: str) -> pb.Rollout:
        """Pause, resume, promote (all nodes now) or abort (take the change back).

        Raises `InvalidDocument`, `UnknownResource` where none is under way, `ChangeConflict`
        where others keep moving it, and `StoreUnavailable`.
        """
        if action not in ACTIONS:
            raise InvalidDocument([Problem("request", "action", repr(action), ", ".join(ACTIONS))])
        for _ in range(_ATTEMPTS):
            record, revision = await self._read()
            wanted = self._controlled(record, action, reason.strip(), author)
            if wanted == record:
                return self._told(record)
            try:
                written = await self._write(wanted, revision, author, (), told=True)
            except Conflict:
                continue  # the director moved it on, or another operator did: look again
            log.info("rollout", number=record.number, action=action, author=author, reason=reason)
            await self._catalog.reached(written, _READ_OWN_WRITE_S)
            return self._told(wanted)
        raise ChangeConflict((), ("others kept moving the rollout at the same time",))

    async def advance(self, observed: Observed, now_s: float, guard: Guard) -> None:
        """The director's round, every second; `guard` proves that it still is the director.

        Raises `Conflict` where it is not, `StoreUnavailable`, and what `Changes.apply` raises.
        """
        self._seen = (self._clock.now(), observed)
        view = self._catalog.view
        record = view.rollout
        if record is None or not record.under_way or not view.rollout_revision or view.withheld:
            return
        # With ten thousand edges it takes longer than the event loop should wait.
        moved = await asyncio.to_thread(
            rollout_steps.advance, record, view.snapshot, observed, now_s
        )
        if moved is None:
            return
        try:
            await self._write(moved, view.rollout_revision, f"control/{self._replica}", (guard,))
        except Conflict as error:
            if guard.key in error.found:
                raise
            return  # an operator was quicker; the next round goes on from there
        if (moved.status, moved.percent) != (record.status, record.percent):
            log.info(
                "rollout moved on",
                number=moved.number,
                status=moved.status,
                percent=moved.percent,
                why=moved.why,
            )

    async def _read(self) -> tuple[RolloutRecord, int]:
        entry = await self._store.get(keys.ROLLOUT)
        try:
            record = rollout_record.decode(entry.value, entry.revision) if entry else None
        except (msgspec.MsgspecError, UnicodeDecodeError):
            record = None  # `tradewind status` says what is wrong with it
        if entry is None or record is None or not record.under_way:
            raise UnknownResource(
                "no rollout is under way", hint="`tradewind rollout status` shows the last one"
            )
        return record, entry.revision

    def _controlled(
        self, record: RolloutRecord, action: str, reason: str, author: str
    ) -> RolloutRecord:
        by = f"{author}: {reason}" if reason else author
        now_s = self._clock.wall()
        if action == "pause" and record.status != "paused":
            return msgspec.structs.replace(
                record, status="paused", paused_by=author, why=f"paused by {by}"
            )
        if action == "resume" and record.status == "paused":
            status: Status = "canary" if record.step == 0 else "rolling"
            return msgspec.structs.replace(
                record,
                status=status,
                paused_by="",
                why="",
                stage_since_s=now_s,
                held_s=0.0,
                counts=Counts(),
                counted_s=now_s,
            )
        if action == "promote":
            return msgspec.structs.replace(
                record, status="done", percent=100.0, why=f"promoted by {by}"
            )
        if action == "abort":
            return msgspec.structs.replace(record, status="aborted", why=f"aborted by {by}")
        return record

    async def _write(
        self,
        record: RolloutRecord,
        revision: int,
        author: str,
        guards: Sequence[Guard],
        *,
        told: bool = False,
    ) -> int:
        """Write the record, and where it takes its change back, that in the same transaction.
        `told`: history and audit tell of it in any case."""
        held = (Guard(keys.ROLLOUT, revision), *guards)
        put = Put(keys.ROLLOUT, rollout_record.encode(record))
        reason = f"rollout of change {record.number}: {record.why or 'resumed'}"
        if record.status in ("aborted", "rolled-back"):
            puts, removes = staging.taken_back(record, await self._changes.resources())
            if puts or removes:
                wanted = Wanted(
                    puts=puts,
                    removes=removes,
                    force=RULES,  # it was so before, and nodes run on it
                    reason=reason,
                )
                done = await self._changes.apply(wanted, author, guards=held, also=(put,))
                return done.revision
        if told:
            return (await self._changes.note(reason, author, held, (put,))).revision
        return await self._store.transact(held, (put,))

    def _told(self, record: RolloutRecord) -> pb.Rollout:
        message = pb.Rollout(
            exists=True,
            number=record.number,
            revision=record.revision,
            status=record.status,
            percent=record.percent,
            why=record.why,
            author=record.author,
            reason=record.reason,
            started_s=record.started_s,
            stage_since_s=record.stage_since_s,
            canaries=record.canaries,
            keys=[pb.Key(kind=key.kind, name=key.name) for key in record.keys],
            error_rate_with=record.counts.rate_with(record.policy.requests_min),
            error_rate_without=record.counts.rate_without(record.policy.requests_min),
        )
        if record.status in ("canary", "rolling"):
            message.next_step_s = record.counted_s + rollout_steps.hold_s(record) - record.held_s
        if record.why and record.under_way and record.status != "paused":
            message.next_step_s = 0.0  # it waits for something other than time
        for node in self._observed().nodes.values():
            if not node.connected:
                continue
            message.nodes += 1
            due = record.has(rollout_steps.principal_of(node.node))
            message.nodes_due += due
            message.nodes_with += due and rollout_steps.has_taken_up(node, record.revision)
        return message

    def _observed(self) -> Observed:
        if self._seen is not None and self._clock.now() - self._seen[0] < _FRESH_S:
            return self._seen[1]
        return self._observe() if self._observe is not None else Observed(self._clock.wall())
