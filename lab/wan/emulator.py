"""All links of one emulator: change them by name while packets flow."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from lab.errors import LabError
from lab.wan.delay_line import DelayLine
from lab.wan.figures import WanSettings, Way, checked
from lab.wan.relay import CLOCK, Relay

_NAMED = 40  # links that an error lists


class Wan:
    """Links by name. Whoever sends to a link's `listen` address reaches its `target`."""

    def __init__(self, wanted: WanSettings) -> None:
        self._loop = asyncio.get_running_loop()
        self._line = DelayLine(self._loop)
        self._expiry: asyncio.TimerHandle | None = None
        self.relays: dict[str, Relay] = {}
        try:
            for link in wanted.links:
                seed = f"{wanted.seed}/{link.name}"
                self.relays[link.name] = Relay(link, self._loop, self._line, seed)
        except LabError:
            self.close()
            raise

    def set(
        self,
        link: str | Sequence[str],
        direction: Way = "both",
        *,
        for_ms: float = 0.0,
        **figures: Any,
    ) -> tuple[Relay, ...]:
        """Change links by name or pattern (`tokyo-*`). With `for_ms` the change undoes itself.
        Raises `LabError`, and then nothing has been changed."""
        found = self.named(link)
        if not checked(figures):
            raise LabError("nothing to set: no figure is given")
        until = CLOCK.now() + for_ms / 1000 if for_ms else None
        for relay in found:
            relay.set(direction, until, **figures)
        self._arm()
        return found

    def reset(self, link: str | Sequence[str], direction: Way = "both") -> tuple[Relay, ...]:
        """Make links what the settings say."""
        found = self.named(link)
        for relay in found:
            relay.reset(direction)
        return found

    def named(self, link: str | Sequence[str]) -> tuple[Relay, ...]:
        """The links that names or patterns mean. Raises `LabError` for one that means none."""
        wanted = [link] if isinstance(link, str) else list(link)
        if not wanted:
            raise LabError("no link is named", hint="`*` means all of them")
        found: dict[str, Relay] = {}
        for pattern in wanted:
            names = [name for name in self.relays if fnmatchcase(name, pattern)]
            if not names:
                raise LabError(f"no link {pattern!r}", hint=self._there_are(pattern))
            found |= {name: self.relays[name] for name in names}
        return tuple(found.values())

    def _there_are(self, wanted: str) -> str:
        close = get_close_matches(wanted, self.relays, n=1, cutoff=0.7)
        names = list(self.relays)
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        listed = f"there are: {', '.join(names[:_NAMED])}{more}"
        return f"did you mean {close[0]!r}? {listed}" if close else listed

    def _arm(self) -> None:
        """Wake up when the next thing that was set for a while ends."""
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        now = CLOCK.now()
        ways = [way for relay in self.relays.values() for way in (relay.out, relay.back)]
        left = [s for way in ways for s in way.held.left_s(now).values()]
        if left:
            self._expiry = self._loop.call_later(min(left) + 0.001, self._expired)

    def _expired(self) -> None:
        now = CLOCK.now()
        for relay in self.relays.values():
            for way in (relay.out, relay.back):
                if way.held.has_expired(now):
                    way.apply(now)
        self._arm()

    def close(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        for relay in self.relays.values():
            relay.close()
        self._line.close()
