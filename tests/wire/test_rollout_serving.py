"""While a rollout is under way: two snapshots are served, each node one of them, whole."""

from __future__ import annotations

from typing import Any

import msgspec
from envoy.service.discovery.v3 import discovery_pb2 as discovery
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.discovery.deltas import Deltas
from control_plane.discovery.session import CATCH_UP_S, Session
from control_plane.rollout_record import RolloutRecord, place, snapshot_before
from runtime.errors import TradewindError
from runtime.identity import Principal
from tests.control_plane.mesh import region
from topology import resources as res
from topology.resources import Resource
from topology.snapshot import Snapshot
from topology.wire.subscription import Origin, Subscription

FRESH = Origin("cp-1")
NODES = [f"edge/e{i}" for i in range(40)]


def at_revision(resource: Resource, revision: int) -> Resource:
    return msgspec.structs.replace(resource, revision=revision)


def document(resource: Resource) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(res.encode(resource))
    return found


A5 = at_revision(region("a", capacity_tokens_per_s=5), 5)
B5 = at_revision(region("b", capacity_tokens_per_s=5), 5)
A9 = at_revision(region("a", capacity_tokens_per_s=9), 9)
C9 = at_revision(region("c", capacity_tokens_per_s=9), 9)
BEFORE = Snapshot.build(5, [A5, B5])
HEAD = Snapshot.build(9, [A9, B5, C9])  # the change: `a` differs, `c` is new


def record(percent: float = 0.0, **fields: Any) -> RolloutRecord:
    return msgspec.structs.replace(
        RolloutRecord(
            number=3,
            author="operator/alice",
            reason="",
            started_s=0.0,
            status="rolling",
            percent=percent,
            stage_since_s=0.0,
            before={"Region/a": document(A5), "Region/c": None},
            revision=9,
            base_revision=7,
        ),
        **fields,
    )


class Node:
    """A node, its stream, and what it was sent."""

    def __init__(self, node_id: str, deltas: Deltas) -> None:
        self.deltas = deltas
        self.mine = Subscription(node_id)
        self.principal = Principal(*node_id.split("/")[:2])
        self.picky = False
        self.got: list[discovery.DeltaDiscoveryResponse] = []
        self.connect()

    def connect(self) -> None:
        hello = self.mine.open()
        self.session = Session(self.mine.node_id, self.principal, hello, self.deltas, 0.0, 0.0)

    def settle(self) -> None:
        for _ in range(10):
            sent = self.session.next_response(FRESH, CATCH_UP_S + 1)
            if sent is None:
                return
            response = discovery.DeltaDiscoveryResponse.FromString(sent)
            self.got.append(response)
            received = self.mine.receive(response, self._adopt)
            self.session.receive(received.request, 0.0)
        raise AssertionError("it never settles")

    def _adopt(self, snapshot: Snapshot) -> None:
        if self.picky and "c" in snapshot.regions:
            raise TradewindError("no c")

    @property
    def capacity(self) -> dict[str, int]:
        return {n: r.capacity_tokens_per_s for n, r in self.mine.snapshot.regions.items()}


OLD = {"a": 5, "b": 5}
NEW = {"a": 9, "b": 5, "c": 9}


def settled(deltas: Deltas, nodes: list[Node]) -> int:
    """Lets all nodes take what there is; how many have the change."""
    for node in nodes:
        node.settle()
        assert node.capacity in (OLD, NEW), "never a mixture"
        assert node.session.staged == (node.capacity == OLD and deltas.before is not None)
        assert not node.session.behind
    return sum(node.capacity == NEW for node in nodes)


def test_stage_by_stage() -> None:
    deltas = Deltas(BEFORE)
    nodes = [Node(name, deltas) for name in NODES]
    assert settled(deltas, nodes) == 0
    for node in nodes:
        node.got.clear()
    deltas.publish(HEAD, record(0.0, status="canary", canaries=("e7",)))
    assert settled(deltas, nodes) == 1
    assert nodes[7].capacity == NEW
    assert all(node.got == [] for node in nodes if node is not nodes[7]), "nothing is new to them"
    for percent in (10.0, 50.0):
        deltas.publish(HEAD, record(percent))
        due = sum(place(name, 3) < percent for name in NODES)
        deltas.publish(HEAD, record(percent, canaries=("e7",)))
        assert settled(deltas, nodes) == sum(
            place(name, 3) < percent or name == "edge/e7" for name in NODES
        )
        assert due < len(NODES)
    deltas.publish(HEAD, record(50.0, canaries=("e7",), status="done"))
    assert settled(deltas, nodes) == len(NODES)
    for node in nodes:
        [response] = node.got
        assert sorted(entry.name for entry in response.resources) == ["Region/a", "Region/c"]
        assert node.mine.snapshot.revision == 9
        assert node.session.acked_revision == 9


def test_many_nodes_share_two_bodies() -> None:
    deltas = Deltas(BEFORE)
    nodes = [Node(name, deltas) for name in NODES]
    settled(deltas, nodes)
    deltas.publish(HEAD, record(50.0))
    new = [Node(name, deltas) for name in NODES]
    settled(deltas, nodes + new)
    assert len(deltas._bodies) == 3  # to the change; and from nothing to either


def test_a_new_node_beyond_the_stage_starts_with_what_was_before() -> None:
    deltas = Deltas(Snapshot.empty())
    deltas.publish(HEAD, record(0.0))
    node = Node("edge/new", deltas)
    node.settle()
    assert node.capacity == OLD
    assert node.session.staged
    assert node.session.acked_revision < 9


def test_a_refusal_is_no_longer_staged_and_a_rollback_mends_it() -> None:
    deltas = Deltas(BEFORE)
    node = Node("edge/e7", deltas)
    node.settle()
    node.picky = True
    deltas.publish(HEAD, record(0.0, status="canary", canaries=("e7",)))
    assert node.session.staged, "it is to have the change and does not yet"
    node.settle()
    assert node.capacity == OLD
    assert node.session.nack is not None
    assert node.session.nack.revision == 9
    assert not node.session.staged
    back = Snapshot.build(11, [at_revision(A5, 11), B5])
    deltas.publish(back, record(0.0, status="rolled-back", canaries=("e7",)))
    node.settle()
    assert node.capacity == OLD
    assert node.session.nack is None
    assert node.session.acked_revision == 11


def test_an_override_reaches_both_sides() -> None:
    deltas = Deltas(BEFORE)
    nodes = [Node("edge/e7", deltas), Node("edge/other", deltas)]
    deltas.publish(HEAD, record(0.0, canaries=("e7",)))
    for node in nodes:
        node.settle()
    drain = res.parse(
        {
            "kind": "Override",
            "name": "drain-b",
            "spec": {"region": "b", "action": "drain", "reason": "x", "percent": 100},
        },
        "test",
    )
    head = HEAD.changed(15, [at_revision(drain, 15)])
    deltas.publish(head, record(0.0, canaries=("e7",)))
    for node in nodes:
        node.settle()
        assert len(list(node.mine.snapshot.of_kind("Override"))) == 1
        assert node.session.acked_revision == 15
    assert [node.capacity for node in nodes] == [NEW, OLD]
    assert [node.session.staged for node in nodes] == [False, True]


def test_counters_in_the_record_are_no_news() -> None:
    deltas = Deltas(BEFORE)
    assert deltas.publish(HEAD, record(10.0))
    before, rollout = deltas.before, deltas.rollout
    assert not deltas.publish(HEAD, record(10.0, why="waits", counted_s=5.0))
    assert (deltas.before, deltas.rollout) == (before, rollout)
    assert deltas.publish(HEAD, record(20.0))
    assert deltas.before is before


def test_what_was_before_and_does_not_fit_leaves_nodes_with_the_last() -> None:
    deltas = Deltas(BEFORE)
    node = Node("edge/other", deltas)
    node.settle()
    broken = record(0.0, before={"Region/a": {"kind": "Region", "name": "a", "spec": {}}})
    deltas.publish(HEAD, broken)
    node.settle()
    assert node.capacity == OLD


Step = st.tuples(
    st.sampled_from(["percent", "override", "deliver", "refuse", "reconnect", "done", "new"]),
    st.integers(0, 3),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(Step, max_size=30))
def test_in_any_order_no_node_gets_a_mixture(steps: list[tuple[str, int]]) -> None:
    deltas = Deltas(BEFORE)
    nodes = [Node(name, deltas) for name in NODES[:4]]
    now, revision, head = record(0.0), 9, HEAD
    deltas.publish(head, now)
    for what, which in steps:
        node = nodes[which]
        match what:
            case "percent":
                now = msgspec.structs.replace(now, percent=min(100.0, now.percent + 9.0 * which))
            case "override":
                revision += 1
                head = head.changed(revision, [at_revision(B5, revision)])
            case "done":
                now = msgspec.structs.replace(now, status="done" if which == 0 else now.status)
            case "reconnect":
                node.connect()
            case "new":
                nodes[which] = Node(node.mine.node_id, deltas)
            case _:
                node.picky = what == "refuse"
                node.settle()
                node.picky = False
        deltas.publish(head, now)
        for each in nodes:
            assert each.capacity in ({}, OLD, NEW)
    deltas.publish(head.changed(revision + 1, []), now)
    for node in nodes:
        node.settle()
        target = deltas.for_principal(node.mine.node_id)
        assert list(node.mine.snapshot) == list(target.snapshot)
        assert node.capacity == (NEW if now.has(node.mine.node_id) else OLD)


def test_the_record_before_is_what_is_served() -> None:
    deltas = Deltas(BEFORE)
    deltas.publish(HEAD, record(0.0))
    assert deltas.before is not None
    assert list(deltas.before.snapshot) == list(snapshot_before(record(0.0), HEAD))
