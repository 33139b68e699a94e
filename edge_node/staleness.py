"""How old this edge's configuration may be, and what happens past the bound. Pure.

Age counts from when a control-plane replica that reaches its store last stood behind the
configuration, by the monotonic clock: a calendar that jumps changes nothing. (Only a process
that starts from disk reads the calendar once, for the time it was not there.)
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf, isfinite

from edge_node.errors import ConfigurationStale
from runtime.metrics import Sample
from topology.policy import StalenessPolicy

NEVER = -inf


class Staleness:
    """What the policy makes of the age. `look` once a second; `check` for each request in
    between, which costs nothing."""

    def __init__(self) -> None:
        self.reason = ""  # why this edge should be sent no traffic; empty: it may
        self._refuses = False
        self._age_s = inf
        self._exceeded = 0

    def look(self, policy: StalenessPolicy, confirmed_at: float, now: float) -> None:
        """`confirmed_at` and `now` by one monotonic clock, in seconds; `NEVER`: not once."""
        self._age_s = max(0.0, now - confirmed_at)
        limit_s = policy.limit_s
        if limit_s is None or self._age_s <= limit_s:
            self.reason, self._refuses = "", False
            return
        if not self.reason:
            self._exceeded += 1
        age = f"for {self._age_s:.0f} s" if isfinite(self._age_s) else "since it started"
        self.reason = (
            f"no control plane has confirmed the configuration {age}; the limit is {limit_s:g} s"
        )
        self._refuses = policy.action == "refuse"

    def check(self) -> None:
        """Raises `ConfigurationStale` where the policy says that requests are refused."""
        if self._refuses:
            raise ConfigurationStale(self.reason)

    def samples(self) -> Iterable[Sample]:
        name = "tradewind_edge_configuration_"
        if isfinite(self._age_s):
            yield Sample(name + "age_seconds", "Since it was last confirmed.", self._age_s)
        stale = bool(self.reason)
        yield Sample(name + "stale", "Whether it is older than the policy allows.", stale)
        text = "Times that it became so."
        yield Sample(name + "stale_total", text, self._exceeded)
