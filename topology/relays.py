"""Which ways through other regions are worth keeping ready. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from topology.latency import published_rtt_ms
from topology.path_score import Score, ms_of, rank
from topology.resources import Key
from topology.snapshot import Snapshot


def candidates(
    snapshot: Snapshot,
    edge: str,
    region: str,
    rtt_of: Callable[[str], float | None],
    limit: int | None = None,
    kept: Sequence[str] = (),
) -> tuple[str, ...]:
    """The relays through which `edge` keeps ways to `region`, by what they are expected to take.

    A region is one when a Link leads from it to `region`. `rtt_of` tells the round-trip time that
    the edge measured to a region, None where it has not: then the Link or the published table
    says it, and a relay whose distance nobody knows comes last. At most `limit` (none: as
    `Policy/default` has it). `kept` are those that are kept now, in their order: they stay unless
    others are better by what makes a change worth it.
    """
    rules = snapshot.policy.paths
    limit = rules.relays_per_region if limit is None else limit
    if limit <= 0:
        return ()
    seen = {}
    for relay in snapshot.regions:
        onward = snapshot.link(Key("Region", relay), Key("Region", region))
        if relay == region or onward is None:
            continue
        there_ms = rtt_of(relay)
        if there_ms is None:
            there_ms = expected_rtt_ms(snapshot, edge, relay)
        seen[relay] = Score(there_ms + onward.rtt_ms if there_ms is not None else None)
    order = [relay for relay in kept if relay in seen]
    order += sorted(seen.keys() - set(order), key=lambda relay: (ms_of(seen[relay]), relay))
    return rank(order, seen, rules)[:limit]


def expected_rtt_ms(snapshot: Snapshot, edge: str, region: str) -> float | None:
    """The round-trip time from an edge to a region as the configuration has it, in ms."""
    link = snapshot.link(Key("EdgeSite", edge), Key("Region", region))
    if link is not None:
        return link.rtt_ms
    site, spec = snapshot.edges.get(edge), snapshot.regions.get(region)
    return published_rtt_ms(site.city, spec.city) if site is not None and spec is not None else None
