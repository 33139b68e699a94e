"""The director's shell: each second, on the elected replica, read, decide, write.

Every write is guarded by the election's key and by the state that it goes on from, in one
transaction: a director that was deposed cannot write, however late it wakes up.
"""

from __future__ import annotations

import asyncio

import msgspec

from control_plane import keys
from control_plane.catalog import Catalog
from control_plane.changes.apply import Changes
from control_plane.changes.errors import RULES
from control_plane.changes.plan import Wanted
from control_plane.changes.rollouts import Rollouts
from control_plane.directives import state as states
from control_plane.directives.known import Directives
from control_plane.directives.observed import union
from control_plane.directives.state import Outlook, State
from control_plane.director.decide import Decided, decide
from control_plane.director.election import Election, NotLeading, Term
from control_plane.director.feed import Feeds
from control_plane.director.local import Local
from control_plane.membership.base import Registry, registered
from control_plane.replicas import Replicas
from control_plane.store.base import Guard, Put, Store
from control_plane.store.errors import Conflict
from runtime import logs
from runtime.clock import Clock
from runtime.errors import TradewindError
from runtime.metrics import Sample
from runtime.validation import InvalidDocument
from topology.resources import Key

log = logs.get("director")

TICK_S = 1.0
WARM_UP_S = 2.0  # a new director first hears what the other replicas see
OUTLOOK_EVERY_S = 5.0  # at least, where it changed little


class Director:
    """Runs on every replica and acts on the elected one."""

    def __init__(
        self,
        replica: str,
        store: Store,
        catalog: Catalog,
        changes: Changes,
        rollouts: Rollouts,
        directives: Directives,
        election: Election,
        replicas: Replicas,
        registry: Registry,
        local: Local,
        feeds: Feeds,
        clock: Clock,
    ) -> None:
        self._replica = replica
        self._store = store
        self._catalog = catalog
        self._changes = changes
        self._rollouts = rollouts
        self._directives = directives
        self._election = election
        self._replicas = replicas
        self._registry = registry
        self._local = local
        self._feeds = feeds
        self._clock = clock
        self._held: tuple[State, int] | None = None  # and its revision in the store
        self._outlook = Outlook()
        self._complaint = ""
        self._task: asyncio.Task[None] | None = None
        self._led = (0, 0.0)  # the term, and since when, by the monotonic clock
        self._ticks = self._writes = self._conflicts = self._failures = 0
        self._tick_s = 0.0

    def start(self) -> None:
        self._task = asyncio.create_task(self._run_forever(), name="director")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._feeds.close()

    def samples(self) -> list[Sample]:
        name = "tradewind_director_"
        return [
            Sample(name + "ticks_total", "Rounds of deciding.", self._ticks),
            Sample(name + "writes_total", "Decisions written.", self._writes),
            Sample(name + "conflicts_total", "Writes that the store refused.", self._conflicts),
            Sample(name + "failures_total", "Rounds that came to nothing.", self._failures),
            Sample(name + "fails", "The last round did.", bool(self._complaint)),
            Sample(name + "feeds", "Other replicas that are heard.", len(self._feeds.parts)),
            Sample(name + "tick_seconds", "How long the last round took.", self._tick_s),
        ]

    async def _run_forever(self) -> None:
        while True:
            began_s = self._clock.now()
            try:
                await self._round()
                self._complaint = ""
            except (NotLeading, Conflict) as error:
                self._held = None
                self._conflicts += isinstance(error, Conflict)
                self._complain(str(error))
            except TradewindError as error:
                self._complain(str(error))
            except Exception as error:  # the process serves on; the next round begins anew
                log.exception("a round of the director failed")
                self._held = None
                self._complain(repr(error))
            self._tick_s = self._clock.now() - began_s
            await asyncio.sleep(max(0.05, TICK_S - self._tick_s))

    def _complain(self, reason: str) -> None:
        self._failures += 1
        if reason != self._complaint:
            log.warning("the director could not act", reason=reason)
        self._complaint = reason

    async def _round(self) -> None:
        term = self._election.leading
        if term is None:
            self._held = None
            self._feeds.follow({})
            return
        others = {n: at for n, at in self._replicas.alive.items() if n != self._replica}
        self._feeds.follow(others)
        if self._warms_up(term) and len(self._feeds.parts) < len(others):
            return
        state, revision = self._held or await self._read()
        now_s = self._clock.wall()
        observed = union([self._local.observe(), *self._feeds.parts], now_s)
        view = self._catalog.view
        if not view.ready or view.stale_since_s is not None:
            return
        known = registered(self._registry, view.snapshot.regions)
        decided = await asyncio.to_thread(decide, view.snapshot, state, observed, known, now_s)
        await self._write_state(decided, state, revision, term.revision, now_s)
        await self._write_outlook(decided.outlook)
        # First what may have to be taken back: the other does no harm while it waits.
        await self._rollouts.advance(observed, now_s, self._election.guard())
        await self._finish(decided)
        self._ticks += 1

    def _warms_up(self, term: Term) -> bool:
        now_s = self._clock.now()
        if self._led[0] != term.revision:
            self._led = (term.revision, now_s)
        return now_s - self._led[1] < WARM_UP_S

    async def _read(self) -> tuple[State, int]:
        """What to go on from, and its revision in the store. Where the store was wiped, or holds
        what is no state, that is the last one known: nodes still go by it, and hold its quotas."""
        entry = await self._store.get(keys.DIRECTOR_STATE)
        if entry is not None:
            try:
                return states.decode(entry.value, entry.key), entry.revision
            except InvalidDocument as error:
                log.error("the director goes on from the last state known", reason=str(error))
        # Term 0: whatever is decided, it is written.
        known = msgspec.structs.replace(self._directives.state, term=0)
        return known, entry.revision if entry is not None else 0

    async def _write_state(
        self, decided: Decided, state: State, revision: int, term: int, now_s: float
    ) -> None:
        wanted = decided.stamped(term, self._replica, now_s)
        if wanted is None:
            self._held = (state, revision)
            return
        self._held = None  # until the write is known to have happened
        written = await self._store.transact(
            [self._election.guard(), Guard(keys.DIRECTOR_STATE, revision)],
            [Put(keys.DIRECTOR_STATE, states.encode(wanted))],
        )
        self._writes += 1
        self._held = (wanted, written)

    async def _write_outlook(self, outlook: Outlook) -> None:
        if not differs_much(self._outlook, outlook):
            return
        await self._store.transact(
            [self._election.guard()], [Put(keys.OUTLOOK, states.encode(outlook))]
        )
        self._outlook = outlook

    async def _finish(self, decided: Decided) -> None:
        """Paced restores that have arrived: their overrides go, as a change like any other."""
        for name, revision in decided.finished.items():
            wanted = Wanted(
                removes=(Key("Override", name),),
                force=RULES,  # it moves nothing any more
                reason="the paced restore is complete",
            )
            author = f"control/{self._replica}"
            # An operator may have put another in its place a moment ago: that one stays.
            seen = Guard(keys.of_resource(Key("Override", name)), revision)
            await self._changes.apply(wanted, author, guards=[self._election.guard(), seen])


def differs_much(before: Outlook, after: Outlook) -> bool:
    """Whether an outlook is worth writing: something moved by a tenth, or it is getting old."""
    age_s = after.at_s - before.at_s
    if age_s < 0 or age_s >= OUTLOOK_EVERY_S:  # the clock was set back, or it is
        return True
    if age_s < TICK_S:
        return False
    figures = _figures(before), _figures(after)
    keys_of_both = figures[0].keys() | figures[1].keys()
    return any(
        abs(figures[0].get(key, 0.0) - figures[1].get(key, 0.0))
        > 0.1 * max(1.0, figures[0].get(key, 0.0))
        for key in keys_of_both
    )


def _figures(outlook: Outlook) -> dict[str, float]:
    flows = {
        f"{cls}/{region}": rate
        for cls, regions in outlook.flows.items()
        for region, rate in regions.items()
    }
    return flows | {f"utilisation/{r}": 10 * u for r, u in outlook.utilisation.items()}
