"""Three edges and one region that is asked for 15 times what it can do, in virtual time: the delay
settles where it shall, nothing is left unused, and edges get equal parts. See `gate_world`."""

from __future__ import annotations

from statistics import median

import pytest

from tests.edge_node.gate_world import Edge, Leveller, Region, World
from topology.cursor import Tier

CALM_S, OVER_S = 2.0, 14.0
TARGET_S = 0.25


def storm(
    slots: int,
    answer_s: float,
    *,
    seed: int = 1,
    parts: tuple[float, ...] = (1, 1, 1),
    waiting_most: int = 1 << 30,
    over_s: float = OVER_S,
    level: bool = False,
) -> tuple[Region, list[Edge]]:
    """Half of the capacity first, then 15 times it; VIP asks for a fifth of it."""
    world = World(seed)
    region = (
        Leveller(world, slots, answer_s) if level else Region(world, slots, answer_s, waiting_most)
    )
    edges = [Edge(world, region, rtt_s) for rtt_s in (0.01, 0.03, 0.08)]
    mix: dict[Tier, float] = {"vip": 0.2, "standard": 10.8, "batch": 4.0}
    for edge, part in zip(edges, parts, strict=True):
        share = part / sum(parts) * region.capacity_per_s
        edge.offer("standard", 0.5 * share, 0.0, CALM_S)
        for tier, times in mix.items():
            edge.offer(tier, times * share, CALM_S, CALM_S + over_s)
    world.run(CALM_S + over_s)
    return region, edges


def waited(region: Region, tier: Tier, since: float) -> float:
    """The median."""
    return median(wait_s for at, of, wait_s in region.waits if of == tier and at >= since)


@pytest.mark.parametrize(
    ("slots", "answer_s", "times"), [(100, 0.5, 2.0), (200, 0.5, 1.7), (300, 2.0, 2.0)]
)
def test_full_of_work_and_the_delay_near_its_target(
    slots: int, answer_s: float, times: float
) -> None:
    region, edges = storm(slots, answer_s)
    settled = CALM_S + 4.0
    done = [at for at, _ in region.ended if at >= settled]
    assert len(done) / (region.capacity_per_s * (OVER_S - 4.0)) >= 0.95
    assert 0.4 * TARGET_S <= waited(region, "standard", settled) <= times * TARGET_S
    assert waited(region, "vip", settled) <= 0.05
    parts = [sum(job.edge is edge for at, job in region.ended if at >= settled) for edge in edges]
    assert max(parts) <= 1.6 * min(parts)


def test_the_capacity_is_reached_within_a_second() -> None:
    region, _ = storm(400, 0.3, over_s=2.0)
    done = sum(1 for at, _ in region.ended if CALM_S + 1.0 <= at < CALM_S + 2.0)
    assert done >= 0.95 * region.capacity_per_s


def test_an_edge_that_asks_for_eight_times_as_much_gets_no_more_than_its_part() -> None:
    region, edges = storm(100, 0.5, parts=(1, 1, 8))
    ended = [job for at, job in region.ended if at >= 6.0 and job.tier != "vip"]
    parts = [sum(job.edge is edge for job in ended) for edge in edges]
    assert max(parts) <= 2 * min(parts)


def test_a_region_that_refuses_before_its_queue_is_long_is_not_asked_in_vain() -> None:
    region, edges = storm(100, 0.5, waiting_most=30)
    refused, sent = sum(edge.refusals for edge in edges), sum(edge.sent for edge in edges)
    assert refused <= 0.3 * sent
    done = [at for at, _ in region.ended if at >= CALM_S + 2.0]
    assert len(done) / (region.capacity_per_s * (OVER_S - 2.0)) >= 0.95


def test_with_levels_next_to_nothing_is_sent_in_vain() -> None:
    region, edges = storm(100, 0.5, level=True)
    assert sum(edge.refusals for edge in edges) <= 0.1 * sum(edge.sent for edge in edges)
    done = [at for at, _ in region.ended if at >= CALM_S + 2.0]
    assert len(done) / (region.capacity_per_s * (OVER_S - 2.0)) >= 0.95
    assert waited(region, "standard", CALM_S + 4.0) <= 2 * TARGET_S
    assert waited(region, "vip", CALM_S + 1.0) <= 0.05


def test_below_capacity_nobody_is_turned_away() -> None:
    world = World(3)
    region = Region(world, 100, 0.5)
    edges = [Edge(world, region, 0.02) for _ in range(3)]
    for edge in edges:
        edge.offer("standard", 0.2 * region.capacity_per_s, 0.0, 10.0)
        edge.offer("batch", 0.08 * region.capacity_per_s, 0.0, 10.0)
    world.run(12.0)
    assert sum(edge.turned_away for edge in edges) == 0
    assert len(region.ended) == sum(edge.sent for edge in edges)
    for edge in edges:
        assert edge.gate.room("r", "standard", world.now).in_flight == 0


def test_it_is_over_when_the_load_is() -> None:
    """A second after the peak nobody is hindered."""
    world = World(5)
    region = Region(world, 100, 0.5, waiting_most=60)
    edge = Edge(world, region, 0.02)
    edge.offer("standard", 15 * region.capacity_per_s, 0.0, 6.0)
    world.run(7.5)
    turned_away = edge.turned_away
    edge.offer("standard", 0.7 * region.capacity_per_s, 7.5, 12.0)
    world.run(13.0)
    assert edge.turned_away == turned_away
    waits = [wait_s for at, _, wait_s in region.waits if at > 8.0]
    assert median(waits) < 0.05
