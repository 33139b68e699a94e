"""Quotas: however messages are lost, late or out of order, the sum of beliefs keeps the limit."""

from __future__ import annotations

from random import Random

import msgspec
import pytest

from control_plane.directives.observed import EdgeReport, NodeState, Observed
from control_plane.directives.state import Quota, State, Wait, directive_for, next_number
from control_plane.director import quotas
from edge_node.admission.quota import Quotas
from tests.topology import worlds
from topology.directive import NONE, Directive
from topology.quota import SETTLE_S, forget_after_s, reclaim_after_s, targets
from topology.snapshot import Snapshot

LIMIT = 1000.0
HOLD_S = 20.0
FLOOR_SHARE = 0.5
NEWCOMER = 0.02
STALE_AFTER_S = 15.0  # how long a replica that lost the store goes on saying that it is current
FOLLOWED_S = 2.0  # after this long a replica knows what was written
DELIVERED_S = 2.0  # after this long a replica has told a node what it knows
EXACT = LIMIT * (1 + 1e-9)


def world(limit: float | None = LIMIT, **policy: float) -> Snapshot:
    spec = {"hold_s": HOLD_S, "floor_share": FLOOR_SHARE, "newcomer_share": NEWCOMER} | policy
    tenant = {} if limit is None else {"limit": {"requests_per_s": limit}}
    return worlds.base(
        worlds.document("Policy", "default", quota=spec), worlds.document("Tenant", "t", **tenant)
    )


WORLD = world()


def advanced(snapshot: Snapshot, state: State, observed: Observed, now_s: float) -> State:
    """What the director's loop makes of a round."""
    split = quotas.advance(snapshot, state, observed, now_s)
    after = msgspec.structs.replace(
        state, quotas=split.quotas, numbers=split.numbers, absent=split.absent
    )
    if after == state:
        return state
    return msgspec.structs.replace(after, number=next_number(state, now_s))


def seen(demand: dict[str, float], acked: dict[str, int] | None = None) -> Observed:
    acked = acked or {}
    return Observed(
        at_s=0.0,
        edges={n: EdgeReport(n, n, 0.0, tenants={"t": d}) for n, d in demand.items()},
        nodes={n: NodeState(n, True, 0.0, 0, acked.get(n, 0)) for n in demand},
    )


def settled(demand: dict[str, float], state: State | None = None, rounds: int = 30) -> State:
    """Where a world in which every directive is acknowledged at once comes to rest."""
    state, now_s = state or State(), 1e9
    for _ in range(rounds):
        state = advanced(WORLD, state, seen(demand, dict(state.numbers)), now_s)
        now_s += 1.0
    return state


# The arithmetic


def test_targets_give_out_all_there_is() -> None:
    assert targets(100.0, 10.0, {}) == {}
    assert targets(100.0, 10.0, {"a": 0.0, "b": 0.0}) == {"a": 50.0, "b": 50.0}
    # More is asked than there is: above the floor, in proportion to what is asked above it.
    found = targets(100.0, 10.0, {"a": 110.0, "b": 60.0, "c": 0.0, "d": 5.0})
    assert found == pytest.approx({"a": 50.0, "b": 30.0, "c": 10.0, "d": 10.0})
    # There is more than is asked: everybody has it, and the rest widens all shares alike.
    found = targets(100.0, 10.0, {"a": 30.0, "b": 0.0})
    assert found == pytest.approx({"a": 75.0, "b": 25.0})


@pytest.mark.parametrize("seed", range(30))
def test_targets_of_random_demand(seed: int) -> None:
    rng = Random(seed)
    demand = {str(n): rng.choice((0.0, rng.random() * 300)) for n in range(rng.randint(1, 9))}
    pool = rng.random() * 500
    floor = rng.random() * pool / len(demand)
    found = targets(pool, floor, demand)
    assert sum(found.values()) == pytest.approx(pool)
    assert all(rate >= floor * (1 - 1e-9) for rate in found.values())
    if sum(max(0.0, d - floor) for d in demand.values()) + floor * len(demand) <= pool:
        assert all(found[n] >= d * (1 - 1e-9) for n, d in demand.items())


# All is well


def test_rates_follow_demand() -> None:
    demand = {"edge/a": 2000.0, "edge/b": 1000.0, "edge/c": 0.0, "edge/d": 10.0}
    quota = settled(demand).quotas["t"]
    floor = LIMIT * FLOOR_SHARE / 4
    wanted = targets(LIMIT, floor, demand)
    assert quota.given == pytest.approx(wanted, rel=quotas.TOLERANCE)
    assert sum(quota.given.values()) > 0.95 * LIMIT
    assert quota.reserved <= EXACT
    assert not quota.pending
    assert not quota.held


def test_demand_that_moves_is_followed_within_a_few_rounds() -> None:
    state = settled({"edge/a": 2000.0, "edge/b": 0.0})
    before = state.quotas["t"].given
    assert before["edge/a"] > 0.7 * LIMIT
    after = settled({"edge/a": 0.0, "edge/b": 2000.0}, state, rounds=4).quotas["t"].given
    assert after["edge/b"] > 0.7 * LIMIT


def test_small_changes_of_demand_send_nothing() -> None:
    state = settled({"edge/a": 400.0, "edge/b": 500.0})
    again = advanced(WORLD, state, seen({"edge/a": 415.0, "edge/b": 485.0}), 2e9)
    assert again is state


def test_a_cut_counts_when_it_is_acknowledged_and_not_before() -> None:
    state = settled({"edge/a": 2000.0, "edge/b": 0.0})
    had = state.quotas["t"].given["edge/a"]
    acked = dict(state.numbers)
    for round_s in range(50):  # a is connected and acknowledges nothing
        demand = {"edge/a": 0.0, "edge/b": 2000.0}
        state = advanced(WORLD, state, seen(demand, acked), 1e9 + 100 + round_s)
        quota = state.quotas["t"]
        assert quota.held["edge/a"] == had
        assert quota.given["edge/b"] <= LIMIT - had
    acked["edge/a"] = state.numbers["edge/a"]
    state = advanced(WORLD, state, seen(demand, acked), 1e9 + 200)
    assert state.quotas["t"].given["edge/b"] > 0.7 * LIMIT


def test_a_newcomer_waits_for_the_others_to_give_way() -> None:
    state = settled({"edge/a": 2000.0})
    assert state.quotas["t"].given["edge/a"] == pytest.approx(LIMIT, rel=0.01)
    demand = {"edge/a": 2000.0, "edge/b": 2000.0}
    state = advanced(WORLD, state, seen(demand, dict(state.numbers)), 2e9)
    assert "edge/b" not in state.quotas["t"].given  # it goes by the newcomer's share
    state = settled(demand, state, rounds=6)
    assert state.quotas["t"].given["edge/b"] == pytest.approx(LIMIT / 2, rel=0.1)


def test_a_lower_limit_and_none() -> None:
    state = settled({"edge/a": 600.0, "edge/b": 400.0})
    low = world(100.0)
    now_s = 2e9
    for _ in range(5):
        now_s += 1
        observed = seen({"edge/a": 600.0, "edge/b": 400.0}, dict(state.numbers))
        state = advanced(low, state, observed, now_s)
    assert state.quotas["t"].reserved <= 100.0 * (1 + 1e-9)
    state = advanced(world(None), state, observed, now_s + 1)
    assert state.quotas == {}
    assert state.numbers == {}


def test_what_a_silent_node_holds_is_kept_for_it_then_used() -> None:
    state = settled({"edge/a": 2000.0, "edge/b": 2000.0})
    acked, now_s = dict(state.numbers), 2e9
    had = state.quotas["t"].given["edge/a"]
    alone = {"edge/b": 5000.0}
    floors_at = None
    for second in range(int(3 * reclaim_after_s(HOLD_S))):
        state = advanced(WORLD, state, seen(alone, acked), now_s + second)
        acked |= {"edge/b": state.numbers["edge/b"]}
        quota = state.quotas["t"]
        assert quota.reserved <= EXACT
        if quota.given["edge/b"] > LIMIT - had + 1 and floors_at is None:
            floors_at = second
    assert floors_at is not None
    assert floors_at >= reclaim_after_s(HOLD_S)
    assert quota.given["edge/b"] == pytest.approx(LIMIT * (1 - FLOOR_SHARE / 2), rel=0.02)
    for second in range(int(3 * forget_after_s(HOLD_S))):
        state = advanced(WORLD, state, seen(alone, acked), now_s + 1000 + second)
        acked |= {"edge/b": state.numbers["edge/b"]}
    assert state.quotas["t"].given == {"edge/b": pytest.approx(LIMIT, rel=0.02)}
    assert state.absent == {}


def test_a_clock_that_jumps_frees_nothing() -> None:
    state = settled({"edge/a": 2000.0, "edge/b": 2000.0})
    acked, now_s = dict(state.numbers), 2e9
    had = state.quotas["t"].given["edge/a"]
    for second in range(4):
        now_s += (1, 1e6, -2e6, 1e7)[second]
        state = advanced(WORLD, state, seen({"edge/b": 5000.0}, acked), now_s)
        assert state.quotas["t"].held.get("edge/a", state.quotas["t"].given["edge/a"]) == had
    assert quotas.waited(Wait(5.0, 100.0), 1e9) == Wait(25.0, 1e9)
    assert quotas.waited(Wait(5.0, 100.0), 3.0) == Wait(5.0, 3.0)


def test_a_lost_state_does_not_mistake_old_acknowledgements_for_new_ones() -> None:
    now_s = 1.7e9
    old = advanced(WORLD, State(number=int(now_s) - 5), seen({"edge/a": 1.0}), now_s)
    acked = dict(old.numbers)
    new = advanced(WORLD, State(), seen({"edge/a": 1.0, "edge/b": 1.0}, acked), now_s + 9)
    assert new.numbers["edge/a"] > acked["edge/a"]


@pytest.mark.parametrize("floor_share", [0.0, 1.0])
@pytest.mark.parametrize("count", [1, 3, 60])
def test_floors_at_either_end(floor_share: float, count: int) -> None:
    snapshot = world(floor_share=floor_share)
    demand = dict.fromkeys((f"edge/{n}" for n in range(count)), 0.0) | {"edge/0": 5000.0}
    state, now_s = State(), 1e9
    for _ in range(12):
        state = advanced(snapshot, state, seen(demand, dict(state.numbers)), now_s)
        now_s += 1
    quota = state.quotas["t"]
    assert quota.given.keys() == demand.keys()  # nobody stays a newcomer
    assert all(rate > 0 for rate in quota.given.values())
    assert 0.9 * LIMIT < sum(quota.given.values()) <= EXACT
    if floor_share == 0.0:
        assert quota.given["edge/0"] >= 0.4 * LIMIT
        assert set(quota.floors.values()) == {0.0}


def test_proxies_and_cores_have_no_part() -> None:
    state = settled({"edge/a": 10.0, "proxy/envoy": 500.0, "core/singapore": 10.0})
    assert list(state.quotas["t"].given) == ["edge/a"]


def test_too_many_pairs_are_said_and_not_split() -> None:
    tenants = [worlds.document("Tenant", f"t{n}", limit={"requests_per_s": 10}) for n in range(90)]
    demand = {f"edge/e{n}": 0.0 for n in range(1000)}
    split = quotas.advance(worlds.base(*tenants), State(), seen(demand), 1e9)
    assert len(split.quotas) == 80
    assert "10 tenants" in split.notes[0]


# All goes wrong


class Replica:
    """Knows some past state of the store, and tells its nodes."""

    def __init__(self) -> None:
        self.at = 0  # index into the store's history
        self.healed_s = 0.0  # when it last found the store again
        self.cut_s: float | None = None  # since when it does not reach the store
        self.unseen = False  # the director does not hear it

    def current(self, now_s: float) -> bool:
        """What it says of itself: it notices late that it has lost the store."""
        return self.cut_s is None or now_s - self.cut_s < STALE_AFTER_S


class Node:
    """An edge worker with the real admission, on a clock of its own that may run slow."""

    def __init__(self, name: str, rng: Random) -> None:
        self.name = name
        self.pace = 0.95 + 0.05 * rng.random()
        self.began = rng.random() * 1e6
        self.disk = NONE
        self.replica: Replica | None = None
        self.connected_s = 0.0
        self.heard_s = 0.0  # since when it hears a current replica
        self.dark_until_s = 0.0  # reaches no replica
        self.acked = 0  # as its replica knows
        self.start(Random(1), 0.0)

    def now(self, now_s: float) -> float:
        return self.began + now_s * self.pace

    def start(self, rng: Random, now_s: float) -> None:
        self.quotas = Quotas(rng)
        self.quotas.use(WORLD, self.now(now_s))
        self.directive = self.disk
        self.replica = None
        if self.disk is not NONE:
            self.quotas.direct(self.disk, self.now(now_s))

    def take(self, directive: Directive, now_s: float) -> None:
        if (directive.term, directive.number) < (self.directive.term, self.directive.number):
            return
        if directive != self.directive:
            self.quotas.direct(directive, self.now(now_s))
            self.directive = self.disk = directive
        self.acked = directive.number

    def belief(self, now_s: float) -> float:
        return self.quotas.rate("t", self.now(now_s))


class Chaos:
    """A store, replicas, nodes and a director, with everything that can go wrong."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.history: list[State] = []
        self.written_s: list[float] = []
        self.now_s = 0.0
        self._write(State(term=1))
        self.replicas = [Replica() for _ in range(3)]
        self.nodes = [Node(f"edge/n{n}", self.rng) for n in range(3)]
        self.born = len(self.nodes)
        self.wall_s = 1.7e9
        self.paused_until_s = 0.0
        self.demand: dict[str, float] = {}

    def step(self) -> None:
        self.now_s += 1.0
        self.wall_s += 1.0
        self._break()
        for replica in self.replicas:
            if replica.cut_s is None:
                self._follow(replica)
        for node in self.nodes:
            self._serve(node)
        if self.now_s >= self.paused_until_s:
            self._direct()

    def _break(self) -> None:
        rng = self.rng
        if rng.random() < 0.02:
            self.wall_s += rng.choice((-1e4, 1e4, 1e6))
        if rng.random() < 0.02:  # another director, which takes a while
            self.paused_until_s = self.now_s + rng.random() * 60
            last = self.history[-1]
            self._write(msgspec.structs.replace(last, term=last.term + 1))
        for replica in self.replicas:
            if rng.random() < 0.02:
                replica.cut_s = self.now_s if replica.cut_s is None else None
                replica.healed_s = self.now_s
            if rng.random() < 0.03:
                replica.unseen = not replica.unseen
        for node in list(self.nodes):
            fate = rng.random()
            if fate < 0.03:
                node.replica = None
                node.dark_until_s = self.now_s + rng.choice((0.0, 5.0, 60.0, 200.0))
            elif fate < 0.045:
                node.start(rng, self.now_s)
            elif fate < 0.048 and len(self.nodes) > 1:
                self.nodes.remove(node)
        if rng.random() < 0.01 and len(self.nodes) < 6:
            self.nodes.append(Node(f"edge/n{self.born}", rng))
            self.born += 1
        if rng.random() < 0.1:
            self.demand = {n.name: rng.choice((0.0, 50.0, 3000.0)) for n in self.nodes}

    def _follow(self, replica: Replica) -> None:
        """It lags behind the store, by no more than FOLLOWED_S."""
        known = sum(at_s <= self.now_s - FOLLOWED_S for at_s in self.written_s) - 1
        if self.now_s - replica.healed_s < FOLLOWED_S:
            known = 0
        if self.rng.random() < 0.6:
            known = self.rng.randint(0, len(self.history) - 1)
        replica.at = max(replica.at, known)

    def _serve(self, node: Node) -> None:
        if node.replica is None:
            if self.now_s >= node.dark_until_s and self.rng.random() < 0.3:
                node.replica, node.acked = self.rng.choice(self.replicas), 0
                node.connected_s = node.heard_s = self.now_s
            return
        state = self.history[node.replica.at]
        current = node.replica.current(self.now_s)
        connected_s = self.now_s - node.connected_s
        if state.number and (self.rng.random() < 0.5 or connected_s >= DELIVERED_S):
            node.take(directive_for(state, node.name), self.now_s)
        if not current:
            node.heard_s = self.now_s
        elif self.now_s - node.heard_s >= SETTLE_S:
            node.quotas.confirm(node.now(self.now_s))

    def _direct(self) -> None:
        heard = [n for n in self.nodes if n.replica is not None and not n.replica.unseen]
        observed = Observed(
            at_s=self.wall_s,
            edges={
                n.name: EdgeReport(
                    n.name, n.name, self.wall_s, tenants={"t": self.demand.get(n.name, 0.0)}
                )
                for n in heard
                if self.rng.random() < 0.9
            },
            nodes={n.name: NodeState(n.name, True, 0.0, 0, n.acked) for n in heard},
        )
        state = advanced(WORLD, self.history[-1], observed, self.wall_s)
        if state is not self.history[-1] and self.rng.random() < 0.95:  # else: the write failed
            self._write(state)

    def _write(self, state: State) -> None:
        self.history.append(state)
        self.written_s.append(self.now_s)


@pytest.mark.parametrize("seed", [*range(40), 51, 54, 214])
def test_no_sum_of_beliefs_exceeds_the_limit(seed: int) -> None:
    chaos = Chaos(seed)
    worst = 0.0
    for _ in range(1500):
        chaos.step()
        beliefs = {n.name: n.belief(chaos.now_s) for n in chaos.nodes}
        newcomers = sum(
            n.quotas.standing == "newcomer" or "t" not in n.directive.quotas for n in chaos.nodes
        )
        allowed = EXACT + newcomers * NEWCOMER * LIMIT
        assert sum(beliefs.values()) <= allowed, (seed, chaos.now_s, beliefs)
        assert chaos.history[-1].quotas.get("t", Quota()).reserved <= EXACT
        worst = max(worst, sum(beliefs.values()))
    assert worst > 0.1 * LIMIT, "the test tried nothing"
