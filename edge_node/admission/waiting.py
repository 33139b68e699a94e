"""Who waits at this edge for room in a region, and who is next. Pure.

Those who may go to the same regions stand in one line, a fair queue by tier and tenant
(`topology.fair_queue`). Whoever stands first in a line goes to the first of its regions that takes
it. Between lines the more urgent tier goes first; among equals they share by how many tenants wait
in each; and a line that was passed over `FLOOR` times by others who took what it could have used
is next. So a place is never left unused while somebody waits who may use it, and each tier of each
line gets at least one of `(FLOOR + URGENCIES) * (FLOOR + lines)` places.

What keeps a request out may be about its tier (no room for it) or about its user (the region's
level). In the first case its tier waits; in the second the next of its tier is looked at, and the
one that was passed goes on waiting behind its tenant's others. One whom every one of its regions
has ruled out by its level does not wait for that to change, unless it is VIP: its place is of use
to others. Times are in seconds of one monotonic clock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from msgspec import Struct

from edge_node.admission.gate import Hindrance
from topology.cursor import TIERS, URGENCY, Tier
from topology.fair_queue import FLOOR, Entry, PriorityQueue, QueueFull

LOOKED_AT = 64  # in one line, for one who is not ruled out by its user's place
_MANY = 1 << 30  # of one line: all lines together are bounded here


class Wish(Struct, frozen=True):
    """A request that would go to a region. `cost` is in tokens, `regions` in its own order."""

    id: int
    tenant: str
    tier: Tier
    weight: float
    cursor: int
    cost: float
    deadline_s: float
    regions: tuple[str, ...]


class Granted(Struct, frozen=True):
    """It goes there now, and waits no more."""

    wish: Wish
    region: str


class Shed(Struct, frozen=True):
    """It waits no more: no region of its own takes its user now."""

    wish: Wish


Judge: TypeAlias = Callable[[str, Wish], Hindrance]


class _Line:
    __slots__ = ("passed", "queue", "regions", "tag")

    def __init__(self, regions: frozenset[str], tag: float) -> None:
        self.regions = regions
        self.queue = PriorityQueue(_MANY)
        self.tag = tag  # what it was given, in its own measure
        self.passed = 0

    def urgencies(self) -> list[int]:
        """Those in which somebody waits, the most urgent first."""
        return [urgency for urgency, count in enumerate(self.queue.waiting()) if count]


class WaitingRoom:
    """Of one edge worker: at most `capacity` wait in all. Lines without anybody are forgotten."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._lines: dict[frozenset[str], _Line] = {}
        self._wishes: dict[int, tuple[Wish, _Line]] = {}
        self._time = 0.0  # the tag that was served last
        self._counts: dict[Tier, int] = dict.fromkeys(TIERS, 0)

    def __len__(self) -> int:
        return len(self._wishes)

    def __contains__(self, wish_id: int) -> bool:
        return wish_id in self._wishes

    def waiting(self) -> dict[Tier, int]:
        """How many wait, by tier."""
        return dict(self._counts)

    def push(self, wish: Wish, now: float, until_s: float) -> Wish | None:
        """Let it wait, until then at most. Returns whoever lost its place to it, if one did;
        raises `QueueFull` where nobody has to give way."""
        displaced = self._give_way(wish) if len(self) >= self.capacity else None
        self._put(wish, now, until_s)
        return displaced

    def leave(self, wish_id: int) -> bool:
        """It waits no more. False: it did not."""
        held = self._wishes.get(wish_id)
        if held is None:
            return False
        held[1].queue.cancel(wish_id)
        self._forget(wish_id)
        return True

    def expire(self, now: float) -> list[Wish]:
        """Those whose time is over; they wait no more."""
        gone = []
        for line in list(self._lines.values()):
            for entry in line.queue.expire(now):
                gone.append(self._wishes[entry.id][0])
                self._forget(entry.id)
        return gone

    def ahead(self, wish: Wish) -> int:
        """How many would be served before it, of those who want what it wants."""
        regions, urgency = frozenset(wish.regions), URGENCY[wish.tier]
        return sum(
            line.queue.ahead_of(urgency, wish.tenant).requests
            for line in self._lines.values()
            if not regions.isdisjoint(line.regions)
        )

    def next(self, now: float, judge: Judge) -> Granted | Shed | None:
        """Whoever is next, and where to; None: nobody who waits may go anywhere."""
        for line in self._in_turn():
            found = self._first_of(line, now, judge)
            if found is not None:
                return found
        return None

    def _in_turn(self) -> list[_Line]:
        lines = list(self._lines.values())
        if len(lines) > 1:
            lines.sort(key=_turn)
        return lines

    def _first_of(self, line: _Line, now: float, judge: Judge) -> Granted | Shed | None:
        urgencies, aside = line.urgencies(), list[tuple[Wish, float]]()
        try:
            while urgencies and len(aside) < LOOKED_AT:
                entry = line.queue.peek(now, urgencies)
                if entry is None:
                    return None
                wish = self._wishes[entry.id][0]
                by_user = 0
                for region in wish.regions:
                    hindrance = judge(region, wish)
                    if not hindrance:
                        self._serve(line, region, entry, now, urgencies)
                        return Granted(wish, region)
                    by_user += hindrance == "level"
                if by_user == len(wish.regions) and wish.tier != "vip":
                    self.leave(wish.id)
                    return Shed(wish)
                if by_user:
                    self.leave(wish.id)
                    aside.append((wish, entry.leaves_s))
                else:
                    urgencies.remove(entry.urgency)
            return None
        finally:
            for wish, until_s in aside:
                self._put(wish, now, until_s)

    def _serve(
        self, line: _Line, region: str, entry: Entry, now: float, urgencies: list[int]
    ) -> None:
        popped = line.queue.pop(now, urgencies)
        assert popped is entry  # nothing has changed since it was looked at
        self._time = max(self._time, line.tag)
        line.tag += entry.cost / max(1, line.queue.tenants(entry.urgency))
        line.passed = 0
        for other in self._lines.values():
            if other is not line and region in other.regions:
                other.passed += 1
        self._forget(entry.id)

    def _put(self, wish: Wish, now: float, until_s: float) -> None:
        regions = frozenset(wish.regions)
        line = self._lines.get(regions)
        if line is None:
            line = self._lines[regions] = _Line(regions, self._time)
        line.queue.push(
            Entry(
                id=wish.id,
                urgency=URGENCY[wish.tier],
                deadline_s=wish.deadline_s,
                input_tokens=0,
                answer_tokens=wish.cost,
                tenant=wish.tenant,
                weight=wish.weight,
                since_s=now,
                useful_s=until_s,
            )
        )
        self._wishes[wish.id] = wish, line
        self._counts[wish.tier] += 1

    def _forget(self, wish_id: int) -> None:
        wish, line = self._wishes.pop(wish_id)
        self._counts[wish.tier] -= 1
        if not len(line.queue):
            self._lines.pop(line.regions, None)

    def _give_way(self, newcomer: Wish) -> Wish:
        """Take out whoever loses its place: somebody less urgent, wherever it waits; else one of
        its own line's largest tenant."""
        urgency = URGENCY[newcomer.tier]
        below = [
            (urgencies[-1], line.queue.waiting()[urgencies[-1]], line)
            for line in self._lines.values()
            if (urgencies := line.urgencies())[-1] > urgency
        ]
        line = self._lines.get(frozenset(newcomer.regions))
        if below:
            line = max(below, key=lambda found: found[:2])[2]
        entry = line.queue.give_way(urgency, newcomer.tenant) if line is not None else None
        if entry is None:
            raise QueueFull(f"{len(self)} requests wait, and no more may")
        displaced = self._wishes[entry.id][0]
        self._forget(entry.id)
        return displaced


def _turn(line: _Line) -> tuple[float, int, float]:
    due = line.passed if line.passed >= FLOOR else 0
    return -due, line.urgencies()[0], line.tag
