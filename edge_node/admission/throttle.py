"""Client-side throttling: what a region would refuse is refused here, for nothing. Pure.

A share of requests is held back as soon as fewer than one in `k` was accepted lately:
max(0, (requests - k * accepts) / (requests + 1)). After Beyer et al., "Site Reliability
Engineering", 2016, chapter 21, "Handling Overload". What was held back counts as a request. What
is under way counts as accepted until the region says otherwise, so that a sudden load by itself
holds nobody back.
"""

from __future__ import annotations

from random import Random

_SLOTS = 10


class Throttle:
    """Of one region and tier. `now` in seconds; a clock that goes back counts in the same slot.

    `troubled`: something was refused or held back lately.
    """

    __slots__ = (
        "_held",
        "_held_in",
        "_k",
        "_next",
        "_number",
        "_refused",
        "_refused_in",
        "_sent",
        "_sent_in",
        "_slot",
        "_slot_s",
        "troubled",
    )

    def __init__(self, k: float, window_s: float) -> None:
        self._k = k
        self._slot_s = window_s / _SLOTS
        self.forget()

    def use(self, k: float, window_s: float) -> None:
        self._k = k
        if window_s / _SLOTS != self._slot_s:
            self._slot_s = window_s / _SLOTS
            self.forget()

    def forget(self) -> None:
        """The region takes everybody of this tier again: the past says nothing any more."""
        self._sent = self._refused = self._held = 0
        self.troubled = False
        self._sent_in = [0] * _SLOTS
        self._refused_in = [0] * _SLOTS
        self._held_in = [0] * _SLOTS
        self._number: int | None = None  # of the slot that is counted in
        self._slot = 0
        self._next = float("-inf")  # when it is over

    def sent(self, now: float) -> None:
        if now >= self._next:
            self._turn(now)
        self._sent += 1
        self._sent_in[self._slot] += 1

    def refused(self, now: float) -> None:
        """The region refused one that was sent."""
        if now >= self._next:
            self._turn(now)
        self._refused += 1
        self.troubled = True
        self._refused_in[self._slot] += 1

    def held(self, now: float) -> None:
        """One was held back."""
        if now >= self._next:
            self._turn(now)
        self._held += 1
        self.troubled = True
        self._held_in[self._slot] += 1

    def share(self, now: float) -> float:
        """Of requests to be held back now: 0 to below 1."""
        if now >= self._next or now < self._next - (_SLOTS + 2) * self._slot_s:
            self._turn(now)
        requests = self._sent + self._held
        accepts = max(0, self._sent - self._refused)
        return max(0.0, (requests - self._k * accepts) / (requests + 1))

    def holds(self, now: float, rng: Random) -> bool:
        """Whether the next one is held back: drawn."""
        if not self.troubled:
            return False
        share = self.share(now)
        return share > 0 and rng.random() < share

    def _turn(self, now: float) -> None:
        """Forget what is older than the window."""
        number = int(now // self._slot_s)
        last = number if self._number is None else self._number
        if number < last - _SLOTS:  # the clock has been set: what was counted is of no time
            self.forget()
            last = number
        number = max(number, last)
        for passed in range(last + 1, min(number, last + _SLOTS) + 1):
            slot = passed % _SLOTS
            self._sent -= self._sent_in[slot]
            self._refused -= self._refused_in[slot]
            self._held -= self._held_in[slot]
            self._sent_in[slot] = self._refused_in[slot] = self._held_in[slot] = 0
        self.troubled = self._refused > 0 or self._held > 0
        self._number = number
        self._slot = number % _SLOTS
        self._next = (number + 1) * self._slot_s
