"""A path on a clock that we hold: a monitor at one end, a server that echoes at the other."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from random import Random

from topology.overlay.monitor import Estimate, PathMonitor, Rules, Seen
from topology.overlay.probe import Echo

BUSY_EVERY_S = Rules().busy_every_s
NOTHING = Seen(0.0, -1, 0.0, -1, 0, 0, 0, 0, None)


class PathWorld:
    """`there` and `back` say, given the time, whether a packet gets through; `rtt` its delay."""

    def __init__(
        self,
        rtt_s: float = 0.02,
        *,
        rules: Rules | None = None,
        there: Callable[[float], bool] = lambda now: True,
        back: Callable[[float], bool] = lambda now: True,
        jitter_s: float = 0.0,
        seed: int = 0,
        start: float = 1000.0,
    ) -> None:
        self.now = start
        self.rtt_s = rtt_s
        self.there, self.back = there, back
        self.jitter_s = jitter_s
        self.stalled = False
        self.over = False
        self.states: list[tuple[float, str, str]] = []
        self.asked: list[float] = []  # when each probe was sent
        self.seen = Seen(0.0, -1, 0.0, -1, 0, 0, 0, 0, rtt_s)
        self.monitor = PathMonitor(start, rules or Rules(), self.seen)
        self._random = Random(seed)
        self._got = self._sent = 0
        self._newest = -1
        self._echoes: dict[int, Echo] = {}
        self._flying: list[tuple[float, int, int, str]] = []
        self._order = 0
        self._judge_at = start
        self._busy = False

    @property
    def busy(self) -> bool:
        return self._busy

    @busy.setter
    def busy(self, busy: bool) -> None:
        if busy and not self._busy:  # as the connection does
            self._judge_at = min(self._judge_at, self.now + BUSY_EVERY_S)
        self._busy = busy

    @property
    def state(self) -> str:
        return self.monitor.state

    @property
    def estimate(self) -> Estimate:
        return self.monitor.estimate(self.now)

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Whether `until` came to hold within the time."""
        end = self.now + seconds
        while not self.over:
            nearest = self._flying[0][0] if self._flying else math.inf
            at = min(self._judge_at, nearest)
            if at > end:
                self.now = end
                return False
            self.now = max(self.now, at)
            if nearest <= self.now:
                self._arrive()
            else:
                self.judge()
            self._note()
            if until():
                return True
        return until()

    def sleep(self, seconds: float) -> None:
        """The process does not run; what arrives meanwhile waits in the socket."""
        self.now += seconds

    def judge(self) -> None:
        while self._flying and self._flying[0][0] <= self.now:  # the socket is read first
            self._arrive()
        verdict = self.monitor.judge(self.now, self.seen, self.busy)
        self.over = verdict.over
        if verdict.probe is not None:
            self.asked.append(self.now)
            if self.there(self.now):
                self._fly(verdict.probe, "there")
        assert self.over or verdict.again_s > self.now
        self._judge_at = verdict.again_s

    def _fly(self, number: int, way: str) -> None:
        self._order += 1
        delay = self.rtt_s / 2 + self._random.random() * self.jitter_s
        heapq.heappush(self._flying, (self.now + delay, self._order, number, way))

    def _arrive(self) -> None:
        at, _, number, way = heapq.heappop(self._flying)
        if way == "back":
            assert self.monitor.echoed(self._echoes.pop(number), self.now)
            return
        self._got += 1
        self._sent += 1
        self._newest = max(self._newest, number)
        if self.back(at):
            self._echoes[self._sent] = Echo(self._newest, self._got, self._sent, self.stalled)
            now, self.now = self.now, at
            self._fly(self._sent, "back")
            self.now = now

    def _note(self) -> None:
        if not self.states or self.states[-1][1] != self.monitor.state:
            self.states.append((self.now, self.monitor.state, self.monitor.why))
