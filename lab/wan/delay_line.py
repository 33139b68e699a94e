"""What is under way: each train of packets leaves at its time, with one timer for all."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from typing import Protocol

from lab.wan.timer import Timer, best
from runtime.clock import Clock, SystemClock

_SLACK_S = 0.00005  # what is due so soon leaves with what is due now


class Lane(Protocol):
    """Where packets go in the end."""

    def arrive(self, datagrams: list[bytes]) -> None: ...


class DelayLine:
    """Hands each lane its packets when they are due, soonest first. Those of one lane that are
    due together go together, so that one system call may send them."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Clock | None = None,
        timer: Callable[[asyncio.AbstractEventLoop, Clock, Callable[[], None]], Timer] = best,
    ) -> None:
        self._clock = clock or SystemClock()
        self._heap: list[tuple[float, int, Lane, list[bytes]]] = []
        self._count = 0
        self._at = float("inf")
        self._timer = timer(loop, self._clock, self._fire)

    def add(self, due: float, lane: Lane, datagrams: list[bytes]) -> None:
        self._count += 1  # of two that are due at the same time the first goes first
        heapq.heappush(self._heap, (due, self._count, lane, datagrams))
        if due < self._at:
            self._arm(due)

    def _arm(self, due: float) -> None:
        self._at = due
        self._timer.at(due)

    def _fire(self) -> None:
        heap, pop = self._heap, heapq.heappop
        limit = self._clock.now() + _SLACK_S
        while heap and heap[0][0] <= limit:
            _, _, lane, datagrams = pop(heap)
            while heap and heap[0][2] is lane and heap[0][0] <= limit:
                datagrams += pop(heap)[3]
            lane.arrive(datagrams)
        self._at = float("inf")
        if heap:
            self._arm(heap[0][0])

    def close(self) -> None:
        self._heap.clear()
        self._timer.close()
