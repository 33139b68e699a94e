"""Whom a core admits when more comes than it can answer: requests whose cursor is below a level.

The level is set ten times a second, from how many places the engine gives in a second, how many
wait, and a histogram of the cursors that came lately (after Zhou et al., "Overload Control for
Scaling WeChat Microservices", 2018, where the level goes down and up by fixed shares of what was
admitted; here by what is known to fit):

- *More wait than aimed at*: down to where what came below the level is what fits, and what waits
  too much is worked off in `SETTLES_S`. Never into VIP's range, unless it is VIPs that wait.
- *Fewer wait*: up, by what would fit. Senders who follow the level hide what they do not send, so
  unseen cursors count as those that are seen in their tier, and the level rises by `RISE_PER_S` at
  most.

Between two settings a request above the level is taken nevertheless when the core has room, so that
no slot waits for the level to rise; or when nobody of its tier waits, so that none starves. What is
aimed at is a time of waiting, but at least enough requests to keep the slots in use.
"""

from __future__ import annotations

from math import exp

from msgspec import Struct

from region_core.scheduling.preemption import VIP
from topology.cursor import ALL_ADMITTED, USERS, tier_of
from topology.fair_queue import URGENCIES

REVIEW_S = 0.1  # between settings
SEEN_S = 0.4  # for how long, about, a request counts
WAITED_S = 0.3  # over which those that wait are averaged
SETTLES_S = 1.0
_VIP_AIMS = 8.0  # times as many VIPs may wait before one is refused: bursts of theirs are served
RISE_PER_S = 400.0  # cursors, of `ALL_ADMITTED`
_LEAST_UP = 0.1  # of what comes: the level rises by as much when slots are free
_SLOTS_WAITING = 1 / 8  # of the slots: so many may wait, however short the time aimed at
_MOST_S = 60.0  # that it would take to answer what came lately, in a second


_OF_TIER = tuple(  # by urgency: which urgencies are of the same tier
    slice(min(same), max(same) + 1)
    for same in (
        [other for other in range(URGENCIES) if tier_of(other) == tier_of(urgency)]
        for urgency in range(URGENCIES)
    )
)


class Moment(Struct, frozen=True):
    """What there is to do, now."""

    waiting: tuple[int, ...]  # by urgency
    unused: int  # slots
    places_per_s: float  # given while all slots are in use; 0: not known


class Level:
    """`value`: cursors below it are admitted. Memory is bounded: a number for each cursor.

    Clocks that jump do no harm: back, and it goes on from there; ahead, and it forgets.
    """

    __slots__ = (
        "_aims", "_count", "_counts", "_places", "_rates", "_reviewed_s", "_slots", "_target_s",
        "_waited", "_waiting_limit", "excess", "value",
    )  # fmt: skip

    def __init__(self, target_s: float, slots: int, waiting_limit: int, now: float) -> None:
        self.value = ALL_ADMITTED
        self.excess = 0.0  # what came lately, by what could be answered, beyond 1
        self._waiting_limit = waiting_limit
        self._target_s = target_s
        self._slots = slots
        self._aims = 0.0  # requests that may wait
        self._waited = 0.0  # requests that did, in the mean, lately
        self._reviewed_s = now
        self._places = 0.0  # a second
        self._count = 0
        self._counts = [0] * ALL_ADMITTED  # that came since it was set
        self._rates = [0.0] * ALL_ADMITTED  # a second, lately

    def aim(self, target_s: float) -> None:
        """How long requests may wait for a slot."""
        self._target_s = target_s

    def came(self, cursor: int) -> None:
        self._counts[cursor] += 1
        self._count += 1

    def due(self, now: float) -> bool:
        """Whether it is to be set anew."""
        return not 0.0 <= now - self._reviewed_s < REVIEW_S

    def admits(self, cursor: int, urgency: int, waiting: tuple[int, ...], unused: int) -> bool:
        """Whether a request is taken; `waiting` is by urgency, `unused` are slots."""
        if cursor < self.value or sum(waiting) - unused < self._aims / 2:
            return True
        return not any(waiting[_OF_TIER[urgency]])

    def review(self, moment: Moment, now: float) -> None:
        """Set it."""
        took_s = max(0.0, now - self._reviewed_s)
        fades = exp(-min(1.0, took_s) / WAITED_S)
        self._waited += (1 - fades) * (sum(moment.waiting) - self._waited)
        self._remember(now)
        places = self._places = moment.places_per_s
        if places <= 0:
            self.value = ALL_ADMITTED
            return
        aims = max(self._target_s * places, self._slots * _SLOTS_WAITING, 1.0)
        self._aims = aims = min(aims, self._waiting_limit / 2)
        self.excess = max(0.0, sum(self._rates) / places - 1)
        waiting = max(0, sum(moment.waiting) - moment.unused)
        vip, vip_aims = sum(moment.waiting[: VIP + 1]), _VIP_AIMS * aims
        if vip > vip_aims:
            self._fall(places + (vip_aims - vip) / SETTLES_S, 1)
        elif waiting <= aims:
            fits = places + (aims - waiting + moment.unused) / SETTLES_S
            self._rise(fits, moment.unused > 0, int(RISE_PER_S * min(1.0, took_s)))
        elif self._waited > aims:
            self._fall(places + (aims - waiting) / SETTLES_S, USERS)

    def wait_s(self, waiting: int) -> float:
        """How long the last of so many waits."""
        return waiting / self._places if self._places > 0 else 0.0

    @property
    def retry_s(self) -> float:
        """How long it would take to answer what came in a second: when to come again."""
        return min(_MOST_S, 1 + self.excess)

    def _remember(self, now: float) -> None:
        """Counts become rates, and old ones fade."""
        took_s = now - self._reviewed_s
        self._reviewed_s = now
        if took_s <= 0:
            return
        fades = exp(-took_s / SEEN_S)
        if self._count:
            news = (1 - fades) / took_s
            self._rates = [
                rate * fades + count * news
                for rate, count in zip(self._rates, self._counts, strict=True)
            ]
            self._counts = [0] * ALL_ADMITTED
            self._count = 0
        else:
            self._rates = [rate * fades for rate in self._rates]

    def _fall(self, fits: float, least: int) -> None:
        level, total = 0, 0.0
        for rate in self._rates[: self.value]:
            total += rate
            if total > fits:
                break
            level += 1
        self.value = max(level, min(least, self.value))

    def _rise(self, fits: float, free: bool, most: int) -> None:
        level = self.value
        total = sum(self._rates[:level])
        if free:
            fits = max(fits, total * (1 + _LEAST_UP))
        seen = self._seen_per_cursor(level)
        for place in range(level, min(level + most, ALL_ADMITTED)):
            expected = max(self._rates[place], seen[place // USERS])
            total += expected
            if total > fits:
                break
            self._rates[place] = expected  # until it is seen: senders hear of it a while later
            level = place + 1
        self.value = level

    def _seen_per_cursor(self, level: int) -> list[float]:
        """By tier: what came on each cursor below the level."""
        return [
            sum(self._rates[begin : min(level, begin + USERS)]) / max(1, min(level - begin, USERS))
            if level > begin
            else 0.0
            for begin in range(0, ALL_ADMITTED, USERS)
        ]
