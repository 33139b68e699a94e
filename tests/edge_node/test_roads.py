"""The ways to a region, over made-up tunnels: relays come and go, the way in use changes when it
must, and every request is sent where something answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise
from random import Random
from typing import Any

import pytest

from edge_node.forward import retired
from edge_node.forward.outliers import STALL_HOLD_S as HOLD_S
from edge_node.forward.path_samples import path_samples
from edge_node.forward.road import Through
from edge_node.forward.standby import CHALLENGE_S
from tests.edge_node.roads import Roads, onward, relaying, until
from tests.edge_node.worlds import RTT_MS, snapshot
from tests.topology.worlds import document, link, region
from topology.overlay.errors import PathDown
from topology.resources import Key
from topology.routing import plan
from topology.snapshot import Snapshot

# dubai: 123 straight, 18 + 116 through frankfurt, 173 + 90 through singapore.
LINKS = (
    onward("frankfurt", "dubai", 116),
    onward("singapore", "dubai", 90),
    onward("frankfurt", "singapore", 161),
    onward("dubai", "singapore", 90),
)
HOLD_BACK_S = 5.0  # `PathPolicy.failback_s`


def relayed(*extra: dict[str, Any], relays: int = 2) -> Snapshot:
    return snapshot(*LINKS, relaying(relays), *extra)


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Roads]:
    monkeypatch.setattr(retired, "CHECK_S", 0.02)
    world = Roads()
    yield world
    await world.tunnels.close()
    assert all(tunnel.closed for tunnel in world.made)


async def begun(world: Roads, config: Snapshot | None = None) -> None:
    """All direct tunnels are connected, the relays chosen, and connected too."""
    world.tunnels.use(config or relayed())
    world.connect(RTT_MS)
    world.review()
    for tunnel in world.made:
        if tunnel.via is not None:
            tunnel.rtt_ms = 140.0 if tunnel.region == "dubai" else 250.0
            tunnel.become("up")
    world.clock.advance(60.0)
    world.tunnels.views()
    world.tunnels.log.events.clear()
    world.tunnels.log.counts.clear()


def kinds(world: Roads) -> list[tuple[str, str]]:
    return sorted(world.tunnels.log.counts)


# Relays come and go


async def test_relays_are_chosen_once_the_regions_are_measured(world: Roads) -> None:
    world.tunnels.use(relayed())
    await asyncio.sleep(0.02)
    assert [t for t in world.made if t.via is not None] == []
    world.connect(RTT_MS)
    await until(lambda: world.relays("dubai") == ["frankfurt", "singapore"])
    await until(lambda: world.relays("singapore") == ["frankfurt", "dubai"])
    assert world.relays("frankfurt") == []
    assert world.via("dubai", "frankfurt").address == world.of("frankfurt")[0].address


async def test_where_some_region_stays_dark_relays_are_chosen_all_the_same(
    world: Roads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_node.forward.tunnels.SETTLE_S", 0.05)
    world.tunnels.use(relayed())
    world.connect({"frankfurt": 18.0, "dubai": 123.0})
    await until(lambda: world.relays("dubai") == ["frankfurt", "singapore"])


@pytest.mark.parametrize("relays", [0, 1])
async def test_the_policy_says_how_many(world: Roads, relays: int) -> None:
    await begun(world, relayed(relays=relays))
    assert world.relays("dubai") == ["frankfurt"][:relays]
    world.tunnels.use(relayed(relays=2))
    world.review()
    assert world.relays("dubai") == ["frankfurt", "singapore"]
    world.tunnels.use(relayed(relays=0))
    world.review()
    assert world.relays("dubai") == []
    assert [view.relay for view in world.tunnels.views()["dubai"].paths] == [""]


async def test_a_relay_that_goes_is_let_go_and_not_cut(world: Roads) -> None:
    await begun(world)
    gone = world.via("dubai", "frankfurt")
    gone.open_exchanges = 1
    config = relayed().changed(2, [], [Key("Link", "frankfurt-dubai")])
    world.tunnels.use(config)
    await until(lambda: world.relays("dubai") == ["singapore"])
    await asyncio.sleep(0.1)
    assert not gone.closed
    with pytest.raises(PathDown):
        world.send("dubai", "frankfurt")
    gone.open_exchanges = 0
    await until(lambda: gone.closed)


async def test_a_region_that_goes_takes_the_ways_through_it_along(world: Roads) -> None:
    model = document("Model", "small", regions=["dubai"], context_tokens=10)
    route = document("Route", "all", models=["*"], tenants=["*"], regions=["dubai"])
    before = relayed(model, route)
    await begun(world, before)
    links = ("london-frankfurt", "frankfurt-dubai", "frankfurt-singapore")
    keys = [Key("Region", "frankfurt"), *(Key("Link", name) for name in links)]
    world.tunnels.use(before.changed(2, [], keys))
    await until(lambda: world.relays("dubai") == ["singapore"])
    assert "frankfurt" not in world.tunnels.views()
    with pytest.raises(PathDown):
        world.send("frankfurt")


async def test_a_way_through_a_relay_is_bound_through_the_direct_tunnel_of_the_time(
    world: Roads,
) -> None:
    await begun(world)
    through = world.via("dubai", "frankfurt")
    assert through.via is not None
    (old,) = world.of("frankfurt")
    await through.via.bind("dubai", 3)
    assert old.bound == [("dubai", 3)]
    elsewhere = link("london", "frankfurt", 18)
    elsewhere["spec"]["address"] = "10.9.9.9:1"
    world.tunnels.use(relayed(elsewhere))
    new = world.of("frankfurt")[-1]
    assert (new.address, world.via("dubai", "frankfurt")) == ("10.9.9.9:1", through)
    new.become("up")
    # It follows: a new one comes through the new tunnel, and until it has come the old one stays.
    coming = world.path("dubai", "frankfurt").coming
    assert coming is not None
    assert coming.address == "10.9.9.9:1"
    await coming.via.bind("dubai", 0)
    assert new.bound == [("dubai", 0)]
    world.send("dubai", "frankfurt")
    assert (through.requests, coming.requests) == (1, 0)
    coming.become("up")
    world.send("dubai", "frankfurt")
    assert (through.requests, coming.requests) == (1, 1)
    await until(lambda: through.closed)


async def test_a_relay_that_is_no_region_binds_nothing() -> None:
    with pytest.raises(PathDown):
        await Through("atlantis", {}).bind("dubai", 0)


async def test_a_nearer_relay_takes_a_place_once_it_is_connected(world: Roads) -> None:
    await begun(world, relayed(relays=1))
    assert world.relays("dubai") == ["frankfurt"]
    world.of("singapore")[0].rtt_ms = 5.0  # 5 + 90 beats 18 + 116 by more than a change needs
    world.of("frankfurt")[0].rtt_ms = 50.0
    world.review()
    assert world.relays("dubai") == ["frankfurt"]
    world.clock.advance(CHALLENGE_S)
    world.review()
    assert world.relays("dubai") == ["frankfurt", "singapore"]
    world.via("dubai", "singapore").rtt_ms = 95.0
    world.via("dubai", "singapore").become("up")
    await until(lambda: world.relays("dubai") == ["singapore"])


async def test_a_relay_that_is_dead_gives_its_place_to_one_that_lives(world: Roads) -> None:
    await begun(world, relayed(relays=1))
    world.of("frankfurt")[0].become("silent")
    world.via("dubai", "frankfurt").become("silent")
    world.review()
    world.clock.advance(CHALLENGE_S)
    world.review()
    world.via("dubai", "singapore").become("up")
    await until(lambda: world.relays("dubai") == ["singapore"])


# The way in use


async def test_the_next_request_after_a_death_goes_another_way(world: Roads) -> None:
    await begun(world)
    before = world.tunnels.views()
    assert world.order("dubai") == ["", "frankfurt", "singapore"]
    assert world.tunnels.views() is before
    world.of("dubai")[0].become("silent", "nothing comes back")
    assert world.order("dubai") == ["frankfurt", "singapore"]
    assert world.reachable("dubai")
    assert world.tunnels.views()["dubai"].rtt_ms == 140.0
    world.send("dubai", "frankfurt")
    with pytest.raises(PathDown):
        world.send("dubai")
    (event,) = world.tunnels.log.events
    assert (event.before, event.after) == ("direct", "via frankfurt")
    assert "nothing comes back" in event.why
    assert event.at_s == world.clock.wall()
    assert kinds(world) == [("dubai", "died")]


async def test_it_is_taken_again_when_it_has_lived_for_a_while(world: Roads) -> None:
    await begun(world)
    direct = world.of("dubai")[0]
    direct.become("silent")
    world.order("dubai")
    world.clock.advance(1.0)
    direct.become("up")
    assert world.order("dubai") == ["frankfurt", "singapore", ""]
    world.clock.advance(HOLD_BACK_S - 0.5)
    assert world.order("dubai")[0] == "frankfurt"
    world.clock.advance(1.0)
    assert world.order("dubai") == ["", "frankfurt", "singapore"]
    assert kinds(world) == [("dubai", "better"), ("dubai", "died")]


async def test_a_region_without_a_way_is_lost_and_reached_again(world: Roads) -> None:
    await begun(world)
    for tunnel in world.made:
        if tunnel.region == "dubai":
            tunnel.become("silent")
    assert not world.reachable("dubai")
    world.via("dubai", "singapore").become("up")
    assert world.order("dubai") == ["singapore"]
    assert world.reachable("dubai")
    assert kinds(world) == [("dubai", "lost"), ("dubai", "reached")]


async def test_the_newest_changes_alone_are_kept(world: Roads) -> None:
    await begun(world)
    direct = world.of("frankfurt")[0]
    for _ in range(50):
        for state in ("silent", "up"):
            direct.become(state)
            world.tunnels.views()
            world.clock.advance(100.0)
    assert len(world.tunnels.log.events) == 32
    assert sum(world.tunnels.log.counts.values()) == 100


# Regions that answer and do not serve


async def test_a_distrusted_region_is_not_reachable_for_a_while(world: Roads) -> None:
    await begun(world)
    world.tunnels.distrust("dubai", "no tokens for 1000 ms")
    assert not world.reachable("dubai")
    assert world.order("dubai") == ["", "frankfurt", "singapore"]
    assert world.reachable("frankfurt")
    world.clock.advance(HOLD_S - 0.1)
    assert not world.reachable("dubai")
    world.clock.advance(0.3)
    assert world.reachable("dubai")
    world.tunnels.distrust("dubai", "no tokens for 1000 ms")
    world.clock.advance(1.5 * HOLD_S)
    assert not world.reachable("dubai")
    world.tunnels.trust("dubai")
    assert world.reachable("dubai")
    world.tunnels.distrust("atlantis", "no such region")
    assert kinds(world) == []


def faults(world: Roads, name: str, count: int = 5) -> None:
    for number in range(count):
        world.tunnels.fault(name, "it answered 500, engine", f"r{number}")


async def test_a_region_that_fails_in_a_row_is_left_tried_and_taken_back(world: Roads) -> None:
    config = relayed()
    await begun(world, config)
    faults(world, "frankfurt", 4)
    assert world.reachable("frankfurt")
    faults(world, "frankfurt", 1)
    assert not world.reachable("frankfurt")
    world.tunnels.trust("frankfurt")  # an answer that was on its way
    (told,) = (r for r in world.tunnels.seen() if r.region == "frankfurt" and r.relay == "")
    assert told.why.startswith("5 requests failed in a row, the last: it answered 500, engine; ")

    def first_shares() -> dict[str, float]:
        views = world.tunnels.views()
        made = plan(config, "london", "acme", "small", views, 0.0)
        return {region: round(share, 2) for region, share in made.first().items()}

    assert first_shares() == {"dubai": 1.0}
    world.clock.advance(31.0)
    assert first_shares() == {"frankfurt": 1.0}
    world.send("frankfurt")  # one, and the others wait for what becomes of it
    views = world.tunnels.views()
    assert first_shares() == {"dubai": 1.0}
    assert views["frankfurt"].reachable  # nobody need take it for down
    decision = plan(config, "london", "acme", "small", views, 0.0).at(0.0, 0.0)
    assert [e.why for e in decision.excluded if e.region == "frankfurt"] == [
        "it failed lately, and this edge is trying with one request whether it serves again"
    ]
    world.tunnels.trust("frankfurt")
    assert first_shares() == {"frankfurt": 0.1, "dubai": 0.9}
    world.clock.advance(4.5)
    assert first_shares() == {"frankfurt": 0.5, "dubai": 0.5}
    decision = plan(config, "london", "acme", "small", world.tunnels.views(), 0.0).at(0.0, 0.0)
    assert "it failed lately, and takes 50% of its part" in decision.candidates[0].why
    world.clock.advance(5.5)
    assert first_shares() == {"frankfurt": 1.0}
    assert kinds(world) == []


async def test_a_probe_that_fails_holds_the_region_again(world: Roads) -> None:
    await begun(world)
    faults(world, "frankfurt")
    world.clock.advance(31.0)
    world.tunnels.views()
    world.send("frankfurt")
    faults(world, "frankfurt", 1)
    assert not world.reachable("frankfurt")
    world.clock.advance(31.0)
    assert not world.reachable("frankfurt")
    world.clock.advance(31.0)
    assert world.reachable("frankfurt")


async def test_where_most_regions_fail_all_are_asked(world: Roads) -> None:
    await begun(world)
    faults(world, "frankfurt")
    assert not world.reachable("frankfurt")
    faults(world, "dubai")
    assert world.reachable("frankfurt")
    assert world.reachable("dubai")
    assert world.tunnels.doubted("dubai") == ""


async def test_the_policy_says_when_a_region_is_left_alone(world: Roads) -> None:
    policy = document("Policy", "default", outliers={"consecutive_errors": 2, "hold_s": 1.0})
    await begun(world, snapshot(policy))
    faults(world, "frankfurt", 2)
    assert not world.reachable("frankfurt")
    world.clock.advance(1.1)
    assert world.reachable("frankfurt")
    world.tunnels.use(snapshot(document("Policy", "default", overload={"protect": False})))
    faults(world, "singapore", 20)
    assert world.reachable("singapore")


async def test_a_region_that_comes_anew_is_trusted(world: Roads) -> None:
    model = document("Model", "small", regions=["frankfurt"], context_tokens=10)
    route = document("Route", "all", models=["*"], tenants=["*"], regions=["frankfurt"])
    config = snapshot(model, route)
    await begun(world, config)
    world.tunnels.distrust("dubai", "no tokens for 1000 ms")
    world.tunnels.use(config.changed(2, [], [Key("Region", "dubai"), Key("Link", "london-dubai")]))
    world.tunnels.use(config)
    world.of("dubai")[-1].become("up")
    assert world.reachable("dubai")


@pytest.mark.parametrize(("tenant", "chosen"), [("acme", "dubai"), ("eurobank", "frankfurt")])
async def test_a_distrusted_region_is_better_than_none(
    world: Roads, tenant: str, chosen: str
) -> None:
    config = relayed()
    await begun(world, config)
    world.tunnels.distrust("frankfurt", "no tokens for 1000 ms")
    views = world.tunnels.views()
    decision = plan(config, "london", tenant, "small", views, 0.0).at(0.0, 0.0)
    assert decision.candidates[0].region == chosen
    assert "frankfurt" not in [c.region for c in decision.candidates[1:]]


async def test_a_stall_is_a_matter_of_the_region_and_not_of_the_way(world: Roads) -> None:
    await begun(world)
    world.of("dubai")[0].become("stalled", "the region answers probes and serves nothing")
    assert not world.reachable("dubai")
    assert world.order("dubai")[0] == ""
    assert world.tunnels.doubted("dubai") == "the region answers probes and serves nothing"
    world.of("dubai")[0].become("up")
    assert world.reachable("dubai")
    assert kinds(world) == []


async def test_where_there_are_several_cores_a_stall_is_of_one_of_them(world: Roads) -> None:
    several = region("dubai", "AE")
    several["spec"]["cores"] = ["10.0.0.1:1", "10.0.0.2:1"]
    await begun(world, relayed(several))
    first, second = world.of("dubai")
    assert (second.address, second.turn) == ("10.0.0.2:1", 0)
    first.rtt_ms = 123.0
    first.become("up")
    first.become("stalled")
    assert world.reachable("dubai")
    assert world.order("dubai")[0] == ""
    world.send("dubai")
    assert (first.requests, second.requests) == (0, 1)
    second.become("stalled")
    assert world.reachable("dubai")
    assert world.order("dubai")[0] == "frankfurt"
    for relay in ("frankfurt", "singapore"):
        world.via("dubai", relay).become("stalled")
    assert not world.reachable("dubai")
    second.become("up")
    assert world.reachable("dubai")
    world.send("dubai")
    assert (first.requests, second.requests) == (0, 2)


# Queues


async def test_what_a_region_says_of_its_queue_is_averaged_and_fades(world: Roads) -> None:
    await begun(world)
    for _ in range(40):
        world.tunnels.note_queue("dubai", 400.0)
        world.clock.advance(0.3)
        world.tunnels.views()
    assert 300.0 < world.tunnels.views()["dubai"].queue_ms <= 400.0
    before = world.tunnels.views()
    world.tunnels.note_queue("dubai", 420.0)
    world.clock.advance(0.3)
    assert world.tunnels.views() is before
    for _ in range(400):
        world.clock.advance(0.3)
        world.tunnels.views()
    assert world.tunnels.views()["dubai"].queue_ms < 5.0
    world.tunnels.note_queue("atlantis", 1.0)


async def test_a_region_that_lies_about_its_queue_is_left_for_minutes_at_most(
    world: Roads,
) -> None:
    await begun(world)
    for queue_ms in (1e12, float("nan"), float("inf"), -1.0):
        world.tunnels.note_queue("dubai", queue_ms)
    for _ in range(600):
        world.clock.advance(0.3)
        assert world.tunnels.views()["dubai"].queue_ms <= 60_000.0
    assert world.tunnels.views()["dubai"].queue_ms < 5.0


# Seeing


async def test_heartbeats_tell_of_every_way_in_the_order_of_use(world: Roads) -> None:
    await begun(world)
    world.of("dubai")[0].become("silent", "nothing comes back")
    world.via("dubai", "frankfurt").open_exchanges = 3
    world.tunnels.views()
    seen = [report for report in world.tunnels.seen() if report.region == "dubai"]
    assert [report.relay for report in seen] == ["frankfurt", "singapore", ""]
    assert [report.up for report in seen] == [True, True, False]
    assert seen[0].exchanges == 3
    assert seen[0].measured_rtt_ms == 140.0
    assert seen[2].state == "silent"
    assert all(report.why for report in seen)
    assert seen[0].since_s == world.clock.wall() - world.clock.now()


async def test_metrics_have_bounded_labels(world: Roads) -> None:
    await begun(world)
    world.of("dubai")[0].become("silent")
    samples = list(path_samples(world.tunnels))
    ways = {(s.labels["region"], s.labels["path"]) for s in samples if "path" in s.labels}
    assert len(ways) == 3 + 4
    names = {sample.name for sample in samples}
    assert "tradewind_edge_path_changes_total" in names
    connected = {
        sample.labels["path"]: sample.value
        for sample in samples
        if sample.name == "tradewind_edge_tunnel_connected" and sample.labels["region"] == "dubai"
    }
    assert connected == {"direct": 0.0, "via frankfurt": 1.0, "via singapore": 1.0}
    model = document("Model", "small", regions=["frankfurt"], context_tokens=10)
    route = document("Route", "all", models=["*"], tenants=["*"], regions=["frankfurt"])
    world.tunnels.use(snapshot(model, route).changed(3, [], [
        Key("Region", "dubai"), Key("Link", "london-dubai")]))  # fmt: skip
    assert "dubai" not in {s.labels.get("region") for s in path_samples(world.tunnels)}


async def test_renewed_identities_reach_every_tunnel(world: Roads) -> None:
    await begun(world)
    elsewhere = link("london", "frankfurt", 18)
    elsewhere["spec"]["address"] = "10.9.9.9:1"
    world.tunnels.use(relayed(elsewhere))
    world.tunnels.renew(object())  # type: ignore[arg-type]
    assert all(tunnel.identities == 1 for tunnel in world.made)


# Whatever happens


@pytest.mark.parametrize("seed", range(6))
async def test_no_way_that_is_dead_comes_before_one_that_lives(world: Roads, seed: int) -> None:
    rng = Random(seed)
    await begun(world)
    for _ in range(300):
        tunnel = rng.choice([t for t in world.made if not t.closed])
        tunnel.rtt_ms = rng.uniform(10.0, 300.0)
        tunnel.loss = rng.choice((0.0, 0.0, 0.3))
        tunnel.become(rng.choice(("up", "suspect", "silent", "waiting", "connecting")))
        if rng.random() < 0.7:
            world.clock.advance(rng.expovariate(2.0))
        for name, view in world.tunnels.views().items():
            alive = [path.up for path in view.paths]
            assert alive == sorted(alive, reverse=True)
            assert view.reachable == any(alive)
            for path in view.paths:
                if path.up:
                    world.send(name, path.relay)


@pytest.mark.parametrize("seed", range(4))
async def test_flapping_changes_the_way_no_faster_than_the_hold_allows(
    world: Roads, seed: int
) -> None:
    """Five minutes in which the direct way dies and lives at random, and all figures are noisy
    within the hysteresis: each time it is left, it is taken again after the hold at the soonest,
    so that there are at most two changes for each hold; and noise alone changes nothing."""
    rng = Random(seed)
    await begun(world)
    direct = world.of("dubai")[0]
    relay = world.via("dubai", "frankfurt")
    began = world.clock.now()
    while world.clock.now() - began < 300.0:
        direct.become("silent" if direct.connected else "up")
        for _ in range(rng.randrange(1, 120) if direct.connected else rng.randrange(1, 12)):
            world.clock.advance(rng.uniform(0.02, 0.4))
            direct.rtt_ms = 123.0 + rng.uniform(-4.0, 4.0)
            relay.rtt_ms = 140.0 + rng.uniform(-4.0, 4.0)
            assert world.reachable("dubai")
    changes = [event for event in world.tunnels.log.events if event.region == "dubai"]
    assert len(changes) >= 3
    assert sum(world.tunnels.log.counts.values()) <= 2 * (300.0 / HOLD_BACK_S) + 1
    times = [event.at_s for event in changes if event.before == "direct"]
    assert all(b - a >= HOLD_BACK_S for a, b in pairwise(times))


@pytest.mark.parametrize("seed", range(4))
async def test_tunnels_stay_within_bounds_whatever_the_snapshots_say(
    world: Roads, seed: int
) -> None:
    rng = Random(seed)
    for _ in range(60):
        extra = [link_ for link_ in LINKS if rng.random() < 0.6]
        several = region("dubai", "AE")
        several["spec"]["cores"] = [f"10.0.0.{rng.randrange(4)}:1", "10.0.1.1:1"]
        relays = rng.randrange(4)
        world.tunnels.use(snapshot(*extra, relaying(relays), several))
        if rng.random() < 0.7:
            world.review()
        for tunnel in [t for t in world.made if not t.closed]:
            if rng.random() < 0.5:
                tunnel.become(rng.choice(("up", "silent", "waiting", "stalled")))
        world.clock.advance(rng.uniform(0.0, 40.0))
        world.review()
        paths = list(world.tunnels.paths())
        assert len(paths) <= 3 * (1 + relays + 1)
        await asyncio.sleep(0.03)
        alive = [tunnel for tunnel in world.made if not tunnel.closed]
        assert len(alive) <= 2 * len(paths) + 1
