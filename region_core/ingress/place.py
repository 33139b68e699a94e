"""The place of a request when not all are admitted: what it says, where that can be."""

from __future__ import annotations

import re

from runtime.clock import Clock
from topology.cursor import TIERS, USERS, cursor, tier_of

WINDOW_S = 300.0  # one user's requests fare alike so long, where nobody upstream says how they fare


FIRST_URGENCY = 2  # that may be asked for over plain HTTP, where nobody vouches for a tier
DEFAULT_URGENCY = 3
_URGENCY = re.compile(r"(?:^|,)[ \t]*u=([0-7])[ \t]*(?:,|;|$)")


def urgency_of(priority: str | None) -> int:
    """The header `priority` (RFC 9218): a hint, so what cannot be read counts as none."""
    found = _URGENCY.search(priority[:256]) if priority else None
    return max(FIRST_URGENCY, int(found[1])) if found else DEFAULT_URGENCY


def sane_cursor(said: int, urgency: int, tenant: str, user: str, clock: Clock) -> int:
    """What an edge said, unless it is before the request's own tier, or nothing (0, as from an
    older edge, or from no edge at all): then a place in its tier, by who sends it."""
    tier = tier_of(urgency)
    if said and said >= TIERS.index(tier) * USERS:
        return said
    return cursor(tier, tenant, user, clock.wall(), WINDOW_S)
