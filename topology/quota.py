"""How a tenant's limit is split over the edges: the arithmetic, and what a node may believe. Pure.

A node (one edge worker) holds a *rate* and a *floor*, both from its newest directive. It goes by
the rate while a current replica confirms it, and for `hold_s` after that; then by the floor, for
`FORGET_HOLDS` times `hold_s`; after that, and before its first directive, by the newcomer's
share. The director counts on exactly this when it gives the same rate to others. All rates are
requests per second.
"""

from __future__ import annotations

from collections.abc import Mapping

from topology.policy import QuotaPolicy

# After this many times `hold_s` a silent node has no floor either.
FORGET_HOLDS = 24.0
# The director waits longer than the node: for clocks that run apart, for a replica that says it
# is current until it notices that it is not (a watch or a ping that times out takes 15 s).
DRIFT = 1.1
NOTICE_S = 60.0
# How long a node has heard a current replica without a break before it counts as confirmed:
# anything newer has come through by then. (A replica that finds the store again says so a moment
# before it has read everything.)
SETTLE_S = 5.0


def newcomer_rate(limit_per_s: float, policy: QuotaPolicy) -> float:
    """What a node admits that was never given anything."""
    return limit_per_s * policy.newcomer_share


def reclaim_after_s(hold_s: float) -> float:
    """How long the director waits before it counts on a silent node's fall to its floor."""
    return hold_s * DRIFT + NOTICE_S


def forget_after_s(hold_s: float) -> float:
    """How long the director keeps the floor of a node that nobody sees."""
    return hold_s * FORGET_HOLDS * DRIFT + NOTICE_S


def targets(pool: float, floor: float, demand: Mapping[str, float]) -> dict[str, float]:
    """How `pool` is best split by `demand` (node -> requests per second that asked).

    Everybody has `floor`. What is left goes to demand above it: all of it where it suffices, in
    proportion where it does not. What is then still left widens every share alike, so that all
    of `pool` is given out: idle nodes share evenly, and busy ones have room to grow.
    """
    if not demand:
        return {}
    floor = min(floor, pool / len(demand))
    above = {node: max(0.0, asked - floor) for node, asked in demand.items()}
    wanted = sum(above.values())
    rest = max(0.0, pool - floor * len(demand))
    part = min(1.0, rest / wanted) if wanted > 0 else 0.0
    base = {node: floor + part * more for node, more in above.items()}
    total = sum(base.values())
    if total <= 0:
        return dict.fromkeys(demand, pool / len(demand))
    return {node: rate * pool / total for node, rate in base.items()}
