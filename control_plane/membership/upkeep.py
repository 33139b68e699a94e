"""Keeps the nodes of this replica in the registry: registers, renews, forgets.

Heartbeats never wait for the registry. They say who is alive; what has to be written is done
beside them, with a bounded number of calls at once, one per node at a time. While the registry is
away one call at a time asks whether it is back.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Coroutine, Mapping
from random import Random

import msgspec

from control_plane.directives.observed import Member
from control_plane.membership.base import Registry
from control_plane.membership.errors import MemberLost, RegistryUnavailable
from runtime import logs
from runtime.backoff import Backoff
from runtime.clock import Clock

log = logs.get("membership")

TICK_S = 0.25
REWRITE_S = 1.0  # between two writes of one member, however often it changes its mind
FORGETS_MAX = 20_000  # members that left and are still to be taken out
AWAY_MIN_S, AWAY_MAX_S = 0.1, 2.0


class Standing:
    """How one node stands with the registry."""

    __slots__ = (
        "acted_s", "busy", "detail", "due_s", "heard_s", "lease", "leaves", "member",
        "registered", "written",
    )  # fmt: skip

    def __init__(self, member: Member, lease: int, now_s: float) -> None:
        self.member = member
        self.lease = lease
        self.registered = False  # as far as the last call said
        self.written: Member | None = None  # as the registry has it
        self.detail = ""
        self.heard_s = now_s
        self.acted_s = now_s - REWRITE_S  # when its last call to the registry ended
        self.due_s = now_s
        self.busy = False
        self.leaves = False


class Upkeep:
    """Use within one event loop: `start()`, then `heard` for each heartbeat, `await close()`."""

    def __init__(self, registry: Registry, clock: Clock, rng: Random, concurrency: int) -> None:
        self._registry = registry
        self._clock = clock
        self._rng = rng
        self._concurrency = concurrency
        self._backoff = Backoff(AWAY_MIN_S, AWAY_MAX_S, rng.random)
        self._nodes: dict[str, Standing] = {}
        self._due: OrderedDict[str, None] = OrderedDict()  # to be registered or renewed
        self._leaving: OrderedDict[tuple[str, str], tuple[Member, int]] = OrderedDict()
        self._calls: set[asyncio.Task[None]] = set()
        self._away = False
        self._not_before_s = 0.0
        self._ticker: asyncio.Task[None] | None = None
        self.registrations = self.renewals = self.failures = self.lost = self.forgotten = 0

    @property
    def nodes(self) -> Mapping[str, Standing]:
        return self._nodes

    @property
    def pending(self) -> int:
        """Calls to the registry that wait for their turn."""
        return len(self._due) + len(self._leaving)

    def start(self) -> None:
        self._ticker = asyncio.create_task(self._tick_forever(), name="membership-upkeep")

    async def close(self, grace_s: float = 1.0) -> None:
        """Take out whoever said that it leaves, within the grace; keep the rest for others."""
        self._due.clear()
        self._nodes.clear()
        self._pump()
        deadline_s = self._clock.now() + grace_s
        while self._calls and self._clock.now() < deadline_s:
            await asyncio.wait(self._calls, timeout=max(0.01, deadline_s - self._clock.now()))
        tasks = [*self._calls, *([self._ticker] if self._ticker is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def heard(self, member: Member, lease: int) -> Standing:
        """A heartbeat came. `lease`: what the node shows; it counts where we know none."""
        now_s = self._clock.now()
        standing = self._nodes.get(member.node)
        if standing is None or standing.member.incarnation != member.incarnation:
            standing = self._nodes[member.node] = Standing(self._aged(member), lease, now_s)
        else:
            since_s = standing.member.since_s
            standing.member = msgspec.structs.replace(member, since_s=since_s)
        standing.heard_s = now_s
        self._queue_if_due(member.node, standing, now_s)
        self._pump()
        return standing

    def dropped(self, node: str, standing: Standing) -> None:
        """The node's stream ended without a word: it may come back, here or elsewhere."""
        if self._nodes.get(node) is standing:
            del self._nodes[node]
            self._due.pop(node, None)

    def leaves(self, node: str, standing: Standing) -> None:
        """The node said that it leaves: take it out at once."""
        self.dropped(node, standing)
        standing.leaves = True
        if not standing.busy:
            self._queue_leaving(standing)
            self._pump()

    def _queue_leaving(self, standing: Standing) -> None:
        member = standing.member
        if len(self._leaving) < FORGETS_MAX:  # beyond that, their time runs out by itself
            self._leaving[member.node, member.incarnation] = (member, standing.lease)

    def _aged(self, member: Member) -> Member:
        """The member, with the time since which this incarnation has been there."""
        known = self._registry.members.get(member.node)
        if known is not None and known.incarnation == member.incarnation:
            return msgspec.structs.replace(member, since_s=known.since_s)
        return member

    def _queue_if_due(self, node: str, standing: Standing, now_s: float) -> None:
        if standing.busy or now_s - standing.heard_s > self._registry.ttl_s:
            return  # this process slept, or the node is gone without its stream having ended
        if standing.written is None:
            due = now_s >= standing.due_s
        elif standing.written != standing.member:
            due = now_s >= standing.acted_s + REWRITE_S
        else:
            # One heartbeat earns one renewal: what is no longer heard of is not kept alive.
            due = now_s >= standing.due_s and standing.heard_s > standing.acted_s
        if due:
            self._due[node] = None

    async def _tick_forever(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            now_s = self._clock.now()
            for node, standing in self._nodes.items():
                self._queue_if_due(node, standing, now_s)
            self._pump()

    def _pump(self) -> None:
        """Begin as many calls as may be under way."""
        if self._away and self._clock.now() < self._not_before_s:
            return
        limit = 1 if self._away else self._concurrency
        while len(self._calls) < limit:
            if self._leaving:
                _, (member, lease) = self._leaving.popitem(last=False)
                self._call(self._forget(member, lease))
            elif self._due:
                node, _ = self._due.popitem(last=False)
                standing = self._nodes.get(node)
                if standing is not None:
                    standing.busy = True
                    self._call(self._keep(node, standing))
            else:
                return

    def _call(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._calls.add(task)
        task.add_done_callback(self._called)

    def _called(self, task: asyncio.Task[None]) -> None:
        self._calls.discard(task)
        if not task.cancelled():
            self._pump()

    async def _keep(self, node: str, standing: Standing) -> None:
        try:
            await self._write(standing)
            self._answered()
            standing.registered, standing.detail = True, ""
            # Spread, so that nodes which came together do not stay together.
            spread = 0.75 + 0.25 * self._rng.random()
            standing.due_s = self._clock.now() + self._registry.ttl_s / 3 * spread
        except MemberLost as error:
            self.lost += 1
            self._answered()
            log.info("a member was lost", node=node, reason=str(error))
            standing.registered, standing.written = False, None
            standing.detail, standing.due_s = str(error), self._clock.now()
        except RegistryUnavailable as error:
            standing.registered, standing.detail = False, str(error)
            self._failed(str(error))
        except Exception as error:  # the task's outermost edge: one node's trouble is its own
            log.exception("keeping a member failed", node=node)
            standing.registered, standing.detail = False, repr(error)
            standing.due_s = self._clock.now() + REWRITE_S
        finally:
            standing.busy = False
            standing.acted_s = self._clock.now()
            if standing.leaves:
                self._queue_leaving(standing)

    async def _write(self, standing: Standing) -> None:
        member = standing.member
        if standing.written == member:
            await self._registry.renew(member, standing.lease)
            self.renewals += 1
            return
        standing.written = None  # until it is known to be
        standing.lease = await self._registry.register(member, standing.lease)
        standing.written = member
        self.registrations += 1

    async def _forget(self, member: Member, lease: int) -> None:
        try:
            await self._registry.forget(member, lease)
            self.forgotten += 1
            self._answered()
        except RegistryUnavailable as error:
            # Not tried again: nobody renews it, so its time runs out by itself.
            self._failed(str(error))
        except Exception:  # the task's outermost edge
            log.exception("forgetting a member failed", node=member.node)

    def _answered(self) -> None:
        self._away = False
        self._backoff.reset()

    def _failed(self, reason: str) -> None:
        self.failures += 1
        if not self._away:
            log.warning("the registry does not answer", reason=reason)
        now_s = self._clock.now()
        if not self._away or now_s >= self._not_before_s:  # else others failed at the same time
            self._not_before_s = now_s + self._backoff.next_s()
        self._away = True
