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
from zlib import crc32

from msgspec import Struct

from control_plane.directives.observed import Observed
from control_plane.directives.state import Quota, State, Wait, next_number
from topology.policy import QuotaPolicy
from topology.quota import forget_after_s, newcomer_rate, reclaim_after_s, targets
from topology.snapshot import Snapshot

ABSENT_GRACE_S = 30.0  # a node may lose its replica and find another without losing its rate
TOLERANCE = 0.1  # of a rate: smaller changes are not worth a directive
_STEP_MIN_S = 10.0  # how often a wait is written down
_STEP_MAX_S = 20.0  # the most that one step counts for, whatever the clock says
_EPSILON = 1e-9
_QUANTA = 256  # steps in an even share of the limit: rates are rounded down to whole ones
# Pairs of tenant and node worked on in one round: about 0.15 s. Where there are more, each round
# takes a part of the tenants.
_PAIRS_PER_ROUND = 50_000
# All of the state is one value in the store, which takes 1.5 MB: 100,000 pairs with unlike
# demand make that. Tenants that come when there is no more room are not split.
_PAIRS_MAX = 80_000


class Split(Struct, frozen=True):
    """What `advance` decided; each goes into the field of `State` of the same name."""

    quotas: dict[str, Quota]
    numbers: dict[str, int]
    absent: dict[str, Wait]
    notes: tuple[str, ...]  # for people


class _Nodes(Struct, frozen=True):
    """The nodes as one round sees them, the same for all tenants."""

    present: dict[str, None]  # in order, so that equal worlds give equal splits
    absent: dict[str, Wait]
    forgotten: frozenset[str]
    acked: dict[str, int]
    number: int  # of the state that this round makes
    now_s: float


def advance(snapshot: Snapshot, state: State, observed: Observed, now_s: float) -> Split:
    """The next split. Writes nothing down that did not change, so that an equal state results
    from an equal world. `now_s` is Unix time; at least once a second is soon enough."""
    policy = snapshot.policy.quota
    nodes = _see(state, observed, policy, now_s)
    quotas, changed = {}, set()
    limited = {name: spec.limit for name, spec in snapshot.tenants.items() if spec.limit}
    turns = -(-len(limited) * max(1, len(nodes.present)) // _PAIRS_PER_ROUND)
    pairs = sum(len(state.quotas[name].given) for name in limited if name in state.quotas)
    unsplit = []
    for tenant, limit in limited.items():
        if tenant not in state.quotas:
            pairs += len(nodes.present)
            if pairs > _PAIRS_MAX:
                unsplit.append(tenant)
                continue
        if turns > 1 and tenant in state.quotas and (crc32(tenant.encode()) + int(now_s)) % turns:
            quotas[tenant] = state.quotas[tenant]
            continue
        before = state.quotas.get(tenant, Quota())
        asked = {
            node: report.tenants[tenant]
            for node, report in observed.edges.items()
            if tenant in report.tenants
        }
        after = split(before, limit.requests_per_s, policy, nodes, asked)
        quotas[tenant] = after
        if after is not before:
            changed |= _redirected(before, after)
    for tenant in state.quotas.keys() - quotas.keys():
        changed |= state.quotas[tenant].given.keys()
    named = {node for quota in quotas.values() for node in quota.given}
    numbers = {node: n for node, n in state.numbers.items() if node in named}
    numbers |= dict.fromkeys(changed & named, nodes.number)
    absent = {node: wait for node, wait in nodes.absent.items() if node in named}
    return Split(quotas, numbers, absent, _notes(unsplit))


def _notes(unsplit: list[str]) -> tuple[str, ...]:
    if not unsplit:
        return ()
    named = ", ".join(unsplit[:5]) + (", …" if len(unsplit) > 5 else "")
    return (
        f"the limits of {len(unsplit)} tenants are not split ({named}): too many tenants with a"
        " limit for so many edges; each edge gives them a newcomer's share",
    )


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
    present |= {node for node in observed.edges if _is_edge(node)}
    known = {node for quota in state.quotas.values() for node in quota.given}
    absent = {node: waited(state.absent.get(node), now_s) for node in sorted(known - present)}
    forget_s = forget_after_s(policy.hold_s)
    forgotten = {node for node, wait in absent.items() if wait.waited_s >= forget_s}
    return _Nodes(
        present=dict.fromkeys(sorted(present)),
        absent={node: wait for node, wait in absent.items() if node not in forgotten},
        forgotten=frozenset(forgotten),
        acked={n: seen.acked_directive for n, seen in observed.nodes.items()},
        number=next_number(state, now_s),
        now_s=now_s,
    )


def _is_edge(node: str) -> bool:
    return node.startswith("edge/")


def _release(quota: Quota, hold_s: float, nodes: _Nodes) -> Quota:
    """Let go of what is no longer held: acknowledged, waited out, or forgotten."""
    given, floors = dict(quota.given), dict(quota.floors)
    held, floors_held = dict(quota.held), dict(quota.floors_held)
    pending, lost = dict(quota.pending), dict(quota.lost)
    if nodes.forgotten:
        for node in nodes.forgotten & given.keys():
            for table in (given, floors, held, floors_held, pending, lost):
                table.pop(node, None)
    for node, number in quota.pending.items():
        if node not in pending:
            continue
        if nodes.acked.get(node, 0) >= number:
            for table in (held, floors_held, pending, lost):
                table.pop(node, None)
        elif node in nodes.present:
            lost.pop(node, None)
        else:
            lost[node] = waited(lost.get(node), nodes.now_s)
            if node in held and lost[node].waited_s >= reclaim_after_s(hold_s):
                held[node] = max(given[node], floors_held.get(node, floors[node]))
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
        count = max(1, len(nodes.present.keys() | self._given.keys()))
        self._floor = limit * policy.floor_share / count
        # What an idle node has: no less than it could take by itself, where there are few floors.
        self._least = max(self._floor, min(self._newcomer, limit / count / 2))
        # Coarse rates repeat, and the state that holds them all deflates to a fraction.
        self._quantum = limit / count / _QUANTA

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
        return out | targets(pool, self._least, demand)

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
        free = self._limit - sum((self._given | self._held).values())
        for node_set in (self._below_floor(wanted), self._below_target(wanted, asked)):
            room = {
                node: goal - self._reserved(node)
                for node, goal in node_set.items()
                if goal > self._reserved(node)
            }
            total = sum(room.values())
            if total <= 0 or free <= _EPSILON * self._limit:
                continue
            part = min(1.0, free / total)
            for node, more in room.items():
                before = self._reserved(node)
                rate = self._rounded(before + more * part)
                if rate <= before or rate < self._first_least(node, node_set[node]):
                    continue  # it is better off with a newcomer's share until more is free
                free -= rate - before
                self._give(node, rate, min(self._floor, rate))

    def _below_floor(self, wanted: Mapping[str, float]) -> dict[str, float]:
        least = {node: min(self._least, wanted[node]) for node in self._nodes.present}
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
        return self._rounded(min(goal, self._newcomer))

    def _may_change(self, node: str) -> bool:
        """One change at a time, or a slow node would never acknowledge the newest. Of a node
        that is gone, what it was given last is taken back all the same."""
        number = self._pending.get(node)
        if number is None or number == self._nodes.number:
            return True
        wait = self._nodes.absent.get(node)
        return wait is not None and wait.waited_s >= ABSENT_GRACE_S

    def _reserved(self, node: str) -> float:
        return self._held.get(node, self._given.get(node, 0.0))

    def _rounded(self, rate: float) -> float:
        return int(rate / self._quantum) * self._quantum

    def _give(self, node: str, rate: float, floor: float) -> None:
        """Promise a rate; what it may go by until it acknowledges is the larger of the two."""
        rate, floor = self._rounded(rate), self._rounded(floor)
        self._hold(self._held, self._given, node, rate)
        self._hold(self._floors_held, self._floors, node, floor)
        self._pending[node] = self._nodes.number
        self._lost.pop(node, None)

    @staticmethod
    def _hold(held: dict[str, float], told: dict[str, float], node: str, value: float) -> None:
        most = max(held.get(node, 0.0), told.get(node, 0.0))
        told[node] = value
        if most > value:
            held[node] = most
        else:
            held.pop(node, None)


def _redirected(before: Quota, after: Quota) -> set[str]:
    """Nodes whose directive the change alters."""
    return _differing(before.given, after.given) | _differing(before.floors, after.floors)


def _differing(before: Mapping[str, float], after: Mapping[str, float]) -> set[str]:
    return {node for node in before.keys() | after.keys() if before.get(node) != after.get(node)}
