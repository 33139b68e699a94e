"""An event loop whose time jumps to the next timer: seconds of waiting take no time at all.

Nothing in it may wait for a socket or a thread. The same seed gives the same run.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Selector(selectors.SelectSelector):
    """Instead of waiting, lets time pass."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("everything waits, and for nothing")
        self.loop.passed_s += max(0.0, timeout)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        selector = _Selector()
        self.passed_s = 0.0
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.passed_s


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` to its end in a loop of its own."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


class LoopClock:
    """A clock that shows the running loop's time, from another origin and at another rate."""

    def __init__(self, origin_s: float = 0.0, rate: float = 1.0) -> None:
        self._origin_s = origin_s
        self._rate = rate

    def now(self) -> float:
        return self._origin_s + self._rate * asyncio.get_running_loop().time()

    def wall(self) -> float:
        return 1_700_000_000.0 + self.now()
