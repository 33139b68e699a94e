"""Whether the store answers, and since when: from what its calls and watches met."""

from __future__ import annotations

from collections.abc import Hashable

from control_plane.store.base import StoreStatus
from runtime import logs
from runtime.clock import Clock

log = logs.get("store")


class Health:
    """Available once something answered, and while no source (the calls, or one watch) is in
    trouble."""

    def __init__(self, clock: Clock, detail: str) -> None:
        self._clock = clock
        self._troubles: dict[Hashable, str] = {}
        self.status = StoreStatus(False, clock.wall(), detail)

    def works(self, *sources: Hashable, detail: str) -> None:
        """These sources got an answer; `detail` says from where."""
        for source in sources:
            self._troubles.pop(source, None)
        if not self._troubles:
            self._set(True, detail)

    def fails(self, source: Hashable, detail: str) -> None:
        self._troubles[source] = detail
        self._set(False, detail)

    def refuses(self, detail: str) -> None:
        """An answer, but a refusal: of interest only while nothing else has answered."""
        if not self.status.available:
            self._set(False, detail)

    def forget(self, source: Hashable) -> None:
        """A watch was closed; its trouble is nobody's any more."""
        self._troubles.pop(source, None)

    def _set(self, available: bool, detail: str) -> None:
        before = self.status
        since_s = before.since_s if before.available == available else self._clock.wall()
        if (available, detail) == (before.available, before.detail):
            return
        self.status = StoreStatus(available, since_s, detail)
        if available != before.available:
            write = log.info if available else log.warning
            write("store answers" if available else "store does not answer", detail=detail)
