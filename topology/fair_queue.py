"""The waiting room: bounded, urgent first, fair among tenants, and no level starves.

Urgency is RFC 9218's, 0 (most urgent) to 7. Who is next:

1. The most urgent level, strictly, with a floor for each: a level that was passed over `FLOOR`
   times while somebody waited in it is next. So each gets at least one of `FLOOR + URGENCIES`
   places, whatever comes into the others.
2. Within a level, tenants share by weight: self-clocked fair queueing (Golestani, 1994), by what
   requests are expected to cost in tokens. A tenant that has just come is charged for its first
   request in advance: however many new ones come, they cannot keep an older one waiting.
3. Within a tenant, first come first served, until the first has nearly used up the time in which
   starting it is of use; then newest first, since those still have theirs (adaptive LIFO; Maurer,
   "Fail at Scale", 2015).

When the room is full, a newcomer takes the place of a less urgent one: of the tenant with the most
waiting in the least urgent level, the last to have come. Failing that, of its own level's largest
tenant, if that has at least two more waiting than its own. Operations are O(log n), except that
taking a place looks at each tenant of one level.

Whoever had its turn and must wait again (`put_back`) is the first of its tenant, takes no place in
the room and gives way to nobody.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator

from msgspec import Struct

from runtime.errors import TradewindError

URGENCIES = 8
ALL = range(URGENCIES)
FLOOR = 20  # times that a level may be passed over
PRESSED = 0.05  # of its time: with less than that left, the first no longer goes first


class QueueFull(TradewindError):
    """As many wait as may, and none of them is less urgent."""

    retryable = True


class Entry(Struct, frozen=True):
    """A request as the scheduler sees it. Ids grow. Times are on the monotonic clock.

    `useful_s` is the last moment at which starting it is of use: after it, or after `deadline_s`,
    it no longer waits. None: the deadline.
    """

    id: int
    urgency: int
    deadline_s: float
    input_tokens: int  # the prompt, and whatever of the answer the client already has
    limit_tokens: int = 1  # the most that the answer may still have
    answer_tokens: float = 0.0  # that it is expected to have
    tenant: str = ""
    weight: float = 1.0  # of the tenant, above 0
    since_s: float = 0.0
    promised_s: float = 0.0  # its first token was expected so long after `since_s`
    useful_s: float | None = None

    @property
    def cost(self) -> float:
        """In tokens, by the tenant's weight."""
        return (self.input_tokens + self.answer_tokens) / self.weight

    @property
    def leaves_s(self) -> float:
        """When it stops waiting."""
        return self.deadline_s if self.useful_s is None else min(self.useful_s, self.deadline_s)

    def pressed(self, now: float) -> bool:
        """It has waited for nearly all of the time that it could."""
        return now > self.leaves_s - PRESSED * (self.leaves_s - self.since_s)


class Ahead(Struct, frozen=True):
    """Those who would be served before a newcomer."""

    requests: int
    own: int  # of these, of its own level
    input_tokens: float
    answer_tokens: float  # expected, of all of them
    waiting_below: int  # less urgent levels in which somebody waits


class _Tenant:
    __slots__ = ("entries", "returned", "tag", "turn")

    def __init__(self, tag: float, turn: int) -> None:
        self.entries: dict[int, Entry] = {}  # in the order of arrival
        self.returned: dict[int, Entry] = {}  # they go first, in the order in which they returned
        self.tag = tag
        self.turn = turn  # which of the heap's items is its


class _Level:
    """Those of one urgency."""

    __slots__ = (
        "_heap", "_served", "_turns", "answer_tokens", "having", "input_tokens", "passed",
        "requests", "returned", "tenants",
    )  # fmt: skip

    def __init__(self) -> None:
        self.tenants: dict[str, _Tenant] = {}
        self.having: list[int] = []  # [n]: how many tenants have more than n waiting
        self.requests = 0
        self.returned = 0  # of these
        self.input_tokens = 0
        self.answer_tokens = 0.0
        self.passed = 0
        self._heap: list[tuple[float, int, str]] = []  # tag, turn, tenant; some are out of date
        self._served = 0.0  # the tag that was served last: this level's own time
        self._turns = 0

    def push(self, entry: Entry) -> None:
        tenant = self.tenants.get(entry.tenant)
        if tenant is None:
            tenant = self.tenants[entry.tenant] = _Tenant(self._served + entry.cost, 0)
            self._queue(entry.tenant, tenant)
        count = len(tenant.entries)
        if count == len(self.having):
            self.having.append(0)
        self.having[count] += 1
        tenant.entries[entry.id] = entry
        self._add(entry)

    def put_back(self, entry: Entry) -> None:
        """It has paid for its turn already."""
        tenant = self.tenants.get(entry.tenant)
        if tenant is None:
            tenant = self.tenants[entry.tenant] = _Tenant(self._served, 0)
        else:
            tenant.tag = max(self._served, tenant.tag - entry.cost)
        tenant.returned[entry.id] = entry
        self.returned += 1
        self._queue(entry.tenant, tenant)
        self._add(entry)

    def pop(self, now: float) -> Entry:
        """The next one; there must be one."""
        tag, name, entry = self._first(now)
        tenant = self.tenants[name]
        self._served = tag
        tenant.tag += entry.cost
        self.remove(entry)
        if tenant.entries or tenant.returned:
            self._queue(name, tenant)
        return entry

    def peek(self, now: float) -> Entry:
        """What `pop` would return."""
        return self._first(now)[2]

    def _first(self, now: float) -> tuple[float, str, Entry]:
        """The next one, its tenant, and that one's tag."""
        while True:
            tag, turn, name = self._heap[0]
            tenant = self.tenants.get(name)
            if tenant is not None and tenant.turn == turn:
                break
            heapq.heappop(self._heap)
        if tenant.returned:
            return tag, name, next(iter(tenant.returned.values()))
        entry = next(iter(tenant.entries.values()))
        if entry.pressed(now):
            entry = next(reversed(tenant.entries.values()))
        return tag, name, entry

    def remove(self, entry: Entry) -> None:
        tenant = self.tenants[entry.tenant]
        if tenant.returned.pop(entry.id, None) is not None:
            self.returned -= 1
        else:
            del tenant.entries[entry.id]
            self.having[len(tenant.entries)] -= 1
            if not self.having[-1]:
                self.having.pop()
        if not (tenant.entries or tenant.returned):
            del self.tenants[entry.tenant]
        self.requests -= 1
        self.input_tokens -= entry.input_tokens
        self.answer_tokens -= entry.answer_tokens
        if not self.requests:  # nobody is left to be fair to
            self._heap.clear()
            self._served = self.answer_tokens = 0.0
            self.passed = 0

    def before(self, tenant: str) -> int:
        """How many go before a newcomer of this tenant: each tenant has a turn first."""
        held = self.tenants.get(tenant)
        turns = len(held.entries) + 1 if held is not None else 1
        if turns > len(self.having):
            return self.requests
        return self.returned + sum(self.having[:turns])

    def largest(self) -> tuple[int, Entry]:
        """The tenant with the most waiting: how many, and the last of it. There must be one."""
        count = len(self.having)
        return count, max(
            (next(reversed(t.entries.values())) for t in self.tenants.values()
             if len(t.entries) == count),
            key=lambda entry: entry.id,
        )  # fmt: skip

    def _add(self, entry: Entry) -> None:
        self.requests += 1
        self.input_tokens += entry.input_tokens
        self.answer_tokens += entry.answer_tokens

    def _queue(self, name: str, tenant: _Tenant) -> None:
        self._turns += 1
        tenant.turn = self._turns
        heapq.heappush(self._heap, (tenant.tag, tenant.turn, name))
        if len(self._heap) > 2 * len(self.tenants) + 16:
            self._heap = [(t.tag, t.turn, name) for name, t in self.tenants.items()]
            heapq.heapify(self._heap)


class PriorityQueue:
    """Entries that wait for a slot. Ids must be unique among those that wait."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._levels = tuple(_Level() for _ in range(URGENCIES))
        self._entries: dict[int, Entry] = {}
        self._leaving: list[tuple[float, int]] = []  # heap; entries that left are skipped
        self._returned: set[int] = set()  # ids of those that were put back

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, entry_id: int) -> bool:
        return entry_id in self._entries

    def waiting(self) -> tuple[int, ...]:
        """How many wait, by urgency."""
        return tuple(level.requests for level in self._levels)

    def tenants(self, urgency: int) -> int:
        """How many of them have somebody waiting at this urgency."""
        return len(self._levels[urgency].tenants)

    def has_room(self, urgency: int, extra: int = 0, tenant: str = "") -> bool:
        """Whether `push` would take an entry of this urgency and tenant."""
        if self._in_room < self.capacity + extra:
            return True
        return self._yields(urgency, tenant) is not None

    def push(self, entry: Entry, extra: int = 0) -> Entry | None:
        """Let `entry` wait. Returns the entry that lost its place to it, if one did.

        `extra` places are there beyond the capacity, just now. Raises `QueueFull` when there is
        no room and nobody has to give way.
        """
        displaced = None
        if self._in_room >= self.capacity + extra:
            displaced = self.give_way(entry.urgency, entry.tenant)
            if displaced is None:
                raise QueueFull(f"{len(self)} requests wait, and no more may")
        self._levels[entry.urgency].push(entry)
        self._hold(entry)
        return displaced

    def put_back(self, entry: Entry) -> None:
        """Let one wait that was popped and is not done: before all others of its tenant."""
        self._levels[entry.urgency].put_back(entry)
        self._returned.add(entry.id)
        self._hold(entry)

    def give_way(self, urgency: int, tenant: str = "") -> Entry | None:
        """Take out the one that loses its place to a newcomer, if one does."""
        level = self._yields(urgency, tenant)
        if level is None:
            return None
        displaced = level.largest()[1]
        self.cancel(displaced.id)
        return displaced

    def peek(self, now: float = 0.0, among: Collection[int] = ALL) -> Entry | None:
        """The one that `pop` would return."""
        level = self._next(among)
        return level.peek(now) if level is not None else None

    def pop(self, now: float = 0.0, among: Collection[int] = ALL) -> Entry | None:
        """The next one, of these urgencies: none of the others can use the place."""
        level = self._next(among)
        if level is None:
            return None
        for other in self._levels:
            if other.requests:
                other.passed += 1
        level.passed = 0
        entry = level.pop(now)
        del self._entries[entry.id]
        self._returned.discard(entry.id)
        return entry

    def cancel(self, entry_id: int) -> bool:
        """Forget an entry. False when it does not wait here."""
        entry = self._entries.pop(entry_id, None)
        if entry is None:
            return False
        self._returned.discard(entry_id)
        self._levels[entry.urgency].remove(entry)
        return True

    def expire(self, now: float) -> tuple[Entry, ...]:
        """Remove the entries whose time has come, earliest first."""
        gone = []
        while self._leaving and self._leaving[0][0] <= now:
            leaves_s, entry_id = heapq.heappop(self._leaving)
            entry = self._entries.get(entry_id)
            if entry is not None and entry.leaves_s == leaves_s:
                self.cancel(entry_id)
                gone.append(entry)
        return tuple(gone)

    def ahead_of(self, urgency: int, tenant: str = "") -> Ahead:
        """Those who would be served before a newcomer, were nobody else to come."""
        requests, input_tokens, answer_tokens = 0, 0.0, 0.0
        for level in self._levels[:urgency]:
            requests += level.requests
            input_tokens += level.input_tokens
            answer_tokens += level.answer_tokens
        own, before = self._levels[urgency], 0
        if own.requests:
            before = own.before(tenant)
            share = before / own.requests
            requests += before
            input_tokens += own.input_tokens * share
            answer_tokens += own.answer_tokens * share
        below = sum(1 for level in self._levels[urgency + 1 :] if level.requests)
        return Ahead(requests, before, input_tokens, answer_tokens, below)

    def next_deadline(self) -> float | None:
        """A time at which `expire` may have work; not later than the earliest that there is."""
        return self._leaving[0][0] if self._leaving else None

    @property
    def _in_room(self) -> int:
        return len(self._entries) - len(self._returned)

    def _hold(self, entry: Entry) -> None:
        self._entries[entry.id] = entry
        heapq.heappush(self._leaving, (entry.leaves_s, entry.id))
        if len(self._leaving) > 2 * len(self) + 16:
            self._compact()

    def _next(self, among: Collection[int]) -> _Level | None:
        levels = self._levels if among is ALL else [self._levels[urgency] for urgency in among]
        due = [level for level in levels if level.passed >= FLOOR and level.requests]
        if due:
            return max(due, key=lambda level: level.passed)
        return next((level for level in levels if level.requests), None)

    def _yields(self, urgency: int, tenant: str) -> _Level | None:
        """The level in which somebody gives way to a newcomer."""
        for level in self._below(urgency):
            if level.having:
                return level
        own = self._levels[urgency]
        held = own.tenants.get(tenant)
        mine = len(held.entries) if held is not None else 0
        return own if len(own.having) > mine + 1 else None

    def _below(self, urgency: int) -> Iterator[_Level]:
        return reversed(self._levels[urgency + 1 :])

    def _compact(self) -> None:
        """Drop heap entries of those that left, so that the heap is bounded too."""
        self._leaving = [(entry.leaves_s, entry.id) for entry in self._entries.values()]
        heapq.heapify(self._leaving)
