"""Splits each tenant's limit over the edge nodes, so that all of them together never exceed it.

The invariant: for each tenant, the sum of `held` over all nodes is at most the limit, and each
node believes at most what is `held` for it. So it does not matter who hears what and when:

1. A rise is taken from what nobody holds: limit less the sum of `held`. It is held at once.
2. A cut lowers `given` at once and `held` only when the node has acknowledged the directive that
   carries it, or one after it.
3. A node that nobody sees keeps what it holds reserved. Once the cut was out for
   `reclaim_after_s`, the node either has it or has not heard a current replica for `hold_s`, and
   has gone to its floor by its own clock: `held` falls to the larger of the two.
4. After `forget_after_s` unseen a node is forgotten. It goes by the newcomer's share then, as it
   did before its first directive: that is the overshoot, for each such node, and it is stated.

Pure: the same arguments, the same result. Waiting is counted in steps of at most `_STEP_MAX_S`,
so that a clock that jumps frees nothing early. docs/decisions/0009-quotas.md has the proof.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from control_plane.director.observed import Observed
from control_plane.director.state import Quota, State, Wait, next_number
from topology.quota import forget_after_s, newcomer_rate, reclaim_after_s, targets
from topology.resources import QuotaPolicy
from topology.snapshot import Snapshot

ABSENT_GRACE_S = 30.0  # a node may lose its replica and find another without losing its rate
TOLERANCE = 0.1  # of a rate: smaller changes are not worth a directive
_STEP_MIN_S = 10.0  # how often a wait is written down
_STEP_MAX_S = 20.0  # the most that one step counts for, whatever the clock says
_EPSILON = 1e-9


class Split(Struct, frozen=True):
    """What `advance` decided; each goes into the field of `State` of the same name."""

    quotas: dict[str, Quota]
    numbers: dict[str, int]
    absent: dict[str, Wait]


class _Nodes(Struct, frozen=True):
    """The nodes as one round sees them, the same for all tenants."""

    present: frozenset[str]
    absent: dict[str, Wait]
    acked: dict[str, int]
    number: int  # of the state that this round makes
    now_s: float


def advance(snapshot: Snapshot, state: State, observed: Observed, now_s: float) -> Split:
    """The next split. Writes nothing down that did not change, so that an equal state results
    from an equal world. `now_s` is Unix time; at least once a second is soon enough."""
    policy = snapshot.policy.quota
    nodes = _see(state, observed, policy, now_s)
    quotas, changed = {}, set()
    for tenant, spec in snapshot.tenants.items():
        if spec.limit is None:
            continue
        before = state.quotas.get(tenant, Quota())
        asked = {
            node: report.tenants[tenant]
            for node, report in observed.edges.items()
            if tenant in report.tenants
        }
        after = split(before, spec.limit.requests_per_s, policy, nodes, asked)
        quotas[tenant] = after
        if after is not before:
            changed |= _redirected(before, after)
    for tenant in state.quotas.keys() - quotas.keys():
        changed |= state.quotas[tenant].given.keys()
    named = {node for quota in quotas.values() for node in quota.given}
    numbers = {node: n for node, n in state.numbers.items() if node in named}
    numbers |= dict.fromkeys(changed & named, nodes.number)
    return Split(quotas, numbers, {n: w for n, w in nodes.absent.items() if n in named})


def split(
    quota: Quota,
    limit: float,
    policy: QuotaPolicy,
    nodes: _Nodes,
    asked: Mapping[str, float],
) -> Quota:
    """One tenant's next split; the same object where nothing changed."""
    released = _release(quota, policy.hold_s, nodes)
    step = _Step(released, limit, policy, nodes)
    wanted = step.targets(asked)
    step.cut(wanted)
    step.raise_to(wanted, asked)
    after = step.quota()
    return quota if after == quota else after


def waited(wait: Wait | None, now_s: float) -> Wait:
    """The wait, counted on to `now_s`; a jump of the clock counts for one step at most."""
    if wait is None or now_s < wait.at_s:
        return Wait(wait.waited_s if wait else 0.0, now_s)
    step_s = now_s - wait.at_s
    if step_s < _STEP_MIN_S:
        return wait
    return Wait(wait.waited_s + min(step_s, _STEP_MAX_S), now_s)


def _see(state: State, observed: Observed, policy: QuotaPolicy, now_s: float) -> _Nodes:
    present = {n for n, seen in observed.nodes.items() if seen.connected and _is_edge(n)}
    present |= observed.edges.keys()
    known = {node for quota in state.quotas.values() for node in quota.given}
    absent = {node: waited(state.absent.get(node), now_s) for node in known - present}
    forget_s = forget_after_s(policy.hold_s)
    return _Nodes(
        present=frozenset(present),
        absent={node: wait for node, wait in absent.items() if wait.waited_s < forget_s},
        acked={n: seen.acked_directive for n, seen in observed.nodes.items()},
        number=next_number(state, now_s),
        now_s=now_s,
    )


def _is_edge(node: str) -> bool:
    return node.startswith("edge/")


def _release(quota: Quota, hold_s: float, nodes: _Nodes) -> Quota:
    """Let go of what is no longer held: acknowledged, waited out, or forgotten."""
    held, floors_held = dict(quota.held), dict(quota.floors_held)
    pending, lost = dict(quota.pending), dict(quota.lost)
    given, floors = dict(quota.given), dict(quota.floors)
    for node in quota.given:
        if node not in nodes.present and node not in nodes.absent:
            for table in (given, floors, held, floors_held, pending, lost):
                table.pop(node, None)
    for node, number in list(pending.items()):
        if nodes.acked.get(node, 0) >= number:
            held[node], floors_held[node] = given[node], floors[node]
            del pending[node]
            lost.pop(node, None)
        elif node in nodes.present:
            lost.pop(node, None)
        else:
            lost[node] = waited(lost.get(node), nodes.now_s)
            if lost[node].waited_s >= reclaim_after_s(hold_s):
                held[node] = max(given[node], floors_held[node])
    return Quota(given, floors, held, floors_held, pending, lost)


class _Step:
    """One tenant's split while it is worked out; `quota` is the result."""

    def __init__(self, quota: Quota, limit: float, policy: QuotaPolicy, nodes: _Nodes) -> None:
        self._limit = limit
        self._nodes = nodes
        self._newcomer = newcomer_rate(limit, policy)
        # `_release` made these tables; they are this step's own.
        self._given, self._floors = quota.given, quota.floors
        self._held, self._floors_held = quota.held, quota.floors_held
        self._pending, self._lost = quota.pending, quota.lost
        count = len(nodes.present | self._given.keys())
        self._floor = limit * policy.floor_share / count if count else 0.0

    def quota(self) -> Quota:
        return Quota(
            self._given, self._floors, self._held, self._floors_held, self._pending, self._lost
        )

    def targets(self, asked: Mapping[str, float]) -> dict[str, float]:
        """What each node should have. The absent keep theirs for a while, then their floor."""
        out = {}
        for node, wait in self._nodes.absent.items():
            if node in self._given:
                gone = wait.waited_s >= ABSENT_GRACE_S
                out[node] = min(self._given[node], self._floor) if gone else self._given[node]
        pool = max(0.0, self._limit - sum(out.values()))
        demand = {node: asked.get(node, 0.0) for node in self._nodes.present}
        return out | targets(pool, self._floor, demand)

    def cut(self, wanted: Mapping[str, float]) -> None:
        over = sum(self._given.values()) > self._limit * (1 + _EPSILON)
        for node, given in list(self._given.items()):
            target = wanted[node]
            floor = min(self._floor, target)
            less = given - target > (_EPSILON if over else TOLERANCE) * given
            moved = abs(self._floors[node] - floor) > TOLERANCE * max(self._floors[node], floor)
            if (less or moved) and self._may_change(node):
                rate = target if less else given
                self._give(node, rate, min(floor, rate))

    def raise_to(self, wanted: Mapping[str, float], asked: Mapping[str, float]) -> None:
        """Give out what nobody holds: first up to everybody's floor, then up to the targets."""
        free = self._limit - sum(self._held.values())
        for node_set in (self._below_floor(wanted), self._below_target(wanted, asked)):
            room = {
                node: goal - self._held.get(node, 0.0)
                for node, goal in node_set.items()
                if goal > self._held.get(node, 0.0)
            }
            total = sum(room.values())
            if total <= 0 or free <= _EPSILON * self._limit:
                continue
            part = min(1.0, free / total)
            for node, more in room.items():
                rate = self._held.get(node, 0.0) + more * part
                if rate < self._first_least(node, node_set[node]):
                    continue  # it is better off with a newcomer's share until more is free
                free -= rate - self._held.get(node, 0.0)
                self._give(node, rate, min(self._floor, rate))

    def _below_floor(self, wanted: Mapping[str, float]) -> dict[str, float]:
        least = {node: min(self._floor, wanted[node]) for node in self._nodes.present}
        return {
            node: goal
            for node, goal in least.items()
            if self._given.get(node, 0.0) < goal * (1 - TOLERANCE) and self._may_change(node)
        }

    def _below_target(
        self, wanted: Mapping[str, float], asked: Mapping[str, float]
    ) -> dict[str, float]:
        out = {}
        for node in self._nodes.present:
            target, given = wanted[node], self._given.get(node, 0.0)
            short = asked.get(node, 0.0) > given and target - given > TOLERANCE / 5 * target
            if (short or target - given > TOLERANCE * target) and self._may_change(node):
                out[node] = target
        return out

    def _first_least(self, node: str, goal: float) -> float:
        if node in self._given:
            return 0.0
        return min(goal, self._newcomer) * (1 - _EPSILON)

    def _may_change(self, node: str) -> bool:
        """One change at a time, or a slow node would never acknowledge the newest. Of a node
        that is gone, what it was given last is taken back all the same."""
        number = self._pending.get(node)
        if number is None or number == self._nodes.number:
            return True
        wait = self._nodes.absent.get(node)
        return wait is not None and wait.waited_s >= ABSENT_GRACE_S

    def _give(self, node: str, rate: float, floor: float) -> None:
        self._given[node], self._floors[node] = rate, floor
        self._held[node] = max(rate, self._held.get(node, 0.0))
        self._floors_held[node] = max(floor, self._floors_held.get(node, 0.0))
        self._pending[node] = self._nodes.number
        self._lost.pop(node, None)


def _redirected(before: Quota, after: Quota) -> set[str]:
    """Nodes whose directive the change alters."""
    return _differing(before.given, after.given) | _differing(before.floors, after.floors)


def _differing(before: Mapping[str, float], after: Mapping[str, float]) -> set[str]:
    return {node for node in before.keys() | after.keys() if before.get(node) != after.get(node)}
