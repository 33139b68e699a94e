"""Why the ways to a region are in the order they are in, in words. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil

from topology.path_score import Score, ms_of


def reasons(order: Sequence[str], seen: Mapping[str, Score]) -> dict[str, str]:
    """Relay -> why its way is in that place of the order of use."""
    return {
        relay: figures(order, seen)
        if at == 0 and seen[relay].up
        else _behind(seen[relay], seen[order[0]])
        for at, relay in enumerate(order)
    }


def change(
    before: str | None, returned: bool, order: Sequence[str], seen: Mapping[str, Score]
) -> str:
    """Why requests take the first of `order` now. `before`: the way they took; `returned`: it
    was dead, and has lived for long enough."""
    found = figures([relay for relay in order if relay != before or seen[relay].up], seen)
    if before is None:
        return found
    if before not in seen:
        return f"{way(before)} is not kept any more; {found}"
    if not seen[before].up:
        return "; ".join(part for part in (_dead(before, seen), found) if part)
    return f"{way(order[0])} is up again and stayed so; {found}" if returned else found


def figures(order: Sequence[str], seen: Mapping[str, Score]) -> str:
    """All ways, the first first: "straight 71 ms; via dubai 260 ms"."""
    return "; ".join(_figure(relay, seen) for relay in order)


def way(relay: str) -> str:
    return f"via {relay}" if relay else "straight"


def _figure(relay: str, seen: Mapping[str, Score]) -> str:
    score = seen[relay]
    if not score.up:
        return _dead(relay, seen)
    if score.ms is None:
        return f"{way(relay)} not measured yet"
    lost = f" and {score.lost_ms:.0f} ms for what it loses" if score.lost_ms >= 1.0 else ""
    return f"{way(relay)} {score.rtt_ms:.0f} ms{lost}"


def _dead(relay: str, seen: Mapping[str, Score]) -> str:
    score = seen[relay]
    state = score.state or "down"
    why = f" ({score.why})" if score.why not in ("", state) else ""
    return f"{way(relay)} is {state}{why}"


def _behind(score: Score, first: Score) -> str:
    if not score.up:
        return score.why or score.state or "down"
    if score.ms is None:
        return "not measured yet"
    if score.held:
        return f"it was dead: preferred again in {ceil(score.waits_s)} s, if it stays up"
    won_ms = ms_of(first) - score.ms
    if won_ms <= 0 or first.ms is None:
        return f"{-won_ms:.0f} ms behind" if first.ms is not None else "ready"
    if score.barred:
        return f"it was left for a better one: not taken again for {ceil(score.waits_s)} s"
    return f"{won_ms:.0f} ms better ({100 * won_ms / first.ms:.0f}%): too little for a change"
