"""Who is admitted when not all can be: by tier, and within a tier by user. Pure.

A request's *cursor* is its place in that order: all VIP users come before all standard ones, and
these before batch. Within a tier the place is a hash of the user and of the time window, so that
all requests of one user fare alike for as long as the window lasts, and others have their turn in
the next. A region in distress says a *level*: it admits the requests whose cursor is below it.
After Zhou et al., "Overload Control for Scaling WeChat Microservices" (DAGOR), 2018.
"""

from __future__ import annotations

from typing import Literal, TypeAlias
from zlib import crc32

Tier: TypeAlias = Literal["vip", "standard", "batch"]

TIERS: tuple[Tier, ...] = ("vip", "standard", "batch")  # the first is admitted first
USERS = 128  # places in one tier
MAX_CURSOR = len(TIERS) * USERS - 1
ALL_ADMITTED = MAX_CURSOR + 1

# RFC 9218 urgency by tier; 3 is the default there.
URGENCY: dict[Tier, int] = {"vip": 1, "standard": 3, "batch": 6}


def cursor(tier: Tier, tenant: str, user: str, now_s: float, window_s: float) -> int:
    """0 (admitted first) to `MAX_CURSOR`. `now_s`: any clock that all edges share, as Unix time."""
    window = int(now_s // window_s)
    place = crc32(f"{tenant}\0{user}\0{window}".encode()) % USERS
    return TIERS.index(tier) * USERS + place


def tier_of(urgency: int) -> Tier:
    """The tier that a request of this urgency belongs to: an answer that goes on is a little more
    urgent than its tier, and foreign callers use all of 0 to 7."""
    if urgency <= 1:
        return "vip"
    return "standard" if urgency <= 4 else "batch"


def tier_at(place: int) -> Tier:
    """The tier of a cursor."""
    return TIERS[min(place // USERS, len(TIERS) - 1)]
