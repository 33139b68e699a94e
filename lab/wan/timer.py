"""A timer that is exact to some ten microseconds: event loops count in milliseconds.

On Linux a timerfd (timerfd_create(2)), which Python offers from 3.13 on; elsewhere the loop's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import sys
from collections.abc import Callable
from typing import Protocol

from runtime.clock import Clock

_CLOCK_MONOTONIC = 1
_TFD_TIMER_ABSTIME = 1
_NANO = 1_000_000_000


class Timer(Protocol):
    """Calls back once at the time that it was last told."""

    def at(self, when: float) -> None: ...

    def close(self) -> None: ...


class LoopTimer:
    """The event loop's own."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, clock: Clock, fire: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._fire = fire
        self._handle: asyncio.TimerHandle | None = None

    def at(self, when: float) -> None:
        self.close()
        self._handle = self._loop.call_later(max(0.0, when - self._clock.now()), self._fire)

    def close(self) -> None:
        if self._handle is not None:
            self._handle.cancel()


class TimerFd:
    """Linux's, on the clock that `SystemClock.now` reads. Raises `OSError` where there is none."""

    def __init__(self, loop: asyncio.AbstractEventLoop, fire: Callable[[], None]) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._settime = libc.timerfd_settime
        self._fd = int(libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC))
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._spec = (ctypes.c_long * 4)()  # no interval, then seconds and nanoseconds
        self._loop = loop
        self._fire = fire
        loop.add_reader(self._fd, self._expired)

    def at(self, when: float) -> None:
        nanoseconds = max(1, int(when * _NANO))
        self._spec[2], self._spec[3] = divmod(nanoseconds, _NANO)
        self._settime(self._fd, _TFD_TIMER_ABSTIME, self._spec, None)

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _expired(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it was set anew in the meantime
            os.read(self._fd, 8)
        self._fire()


def best(loop: asyncio.AbstractEventLoop, clock: Clock, fire: Callable[[], None]) -> Timer:
    """The most exact one that this machine has."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            return TimerFd(loop, fire)
    return LoopTimer(loop, clock, fire)
