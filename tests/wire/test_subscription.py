"""Both halves of delta xDS against each other, without a socket, in any order of events."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from envoy.service.discovery.v3 import discovery_pb2 as discovery
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.discovery.deltas import Deltas
from control_plane.discovery.session import CATCH_UP_S, Session
from runtime.errors import TradewindError
from runtime.identity import Principal
from tests.control_plane.mesh import region, resource, world
from topology.resources import Key, Resource
from topology.snapshot import Snapshot
from topology.wire import codec
from topology.wire.subscription import Origin, Subscription

FRESH = Origin("cp-1")
NAMES = ("a", "b", "c", "d")
EDGE = Principal("edge", "tokyo")


def snapshot_of(revision: int, held: dict[str, int]) -> Snapshot:
    """Regions by name, each with a capacity."""
    return Snapshot.build(
        revision,
        [
            msgspec.structs.replace(region(name, capacity_tokens_per_s=value), revision=value)
            for name, value in held.items()
        ],
    )


def contents(snapshot: Snapshot) -> dict[str, Any]:
    return {str(resource.key): resource for resource in snapshot}


Event = st.one_of(
    st.tuples(st.just("put"), st.sampled_from(NAMES)),
    st.tuples(st.just("remove"), st.sampled_from(NAMES)),
    st.tuples(st.just("deliver"), st.just("")),
    st.tuples(st.just("send"), st.just("")),
    st.tuples(st.just("answer"), st.just("")),
    st.tuples(st.just("refuse"), st.just("")),
    st.tuples(st.just("reconnect"), st.just("")),
    st.tuples(st.just("restart"), st.just("")),
)


class Pair:
    """A server and a node, and what is on the wire between them."""

    def __init__(self) -> None:
        self.revision = 1
        self.held = {"a": 1, "b": 1}
        self.deltas = Deltas(snapshot_of(1, self.held))
        self.node = Subscription("edge/tokyo")
        self.picky = False
        self.connect()

    def connect(self) -> None:
        self.wire: list[bytes] = []
        self.session = Session("edge/tokyo", EDGE, self.node.open(), self.deltas, 0.0, 0.0)

    def publish(self) -> None:
        self.revision += 1
        self.deltas.publish(snapshot_of(self.revision, self.held))

    def send(self) -> None:
        # Late enough for a replica that is behind to be believed.
        response = self.session.next_response(FRESH, CATCH_UP_S + 1)
        if response is not None:
            self.wire.append(response)
        assert len(self.wire) <= 1, "one response at a time"

    def answer(self) -> None:
        if self.wire:
            response = discovery.DeltaDiscoveryResponse.FromString(self.wire.pop(0))
            before = self.node.snapshot
            received = self.node.receive(response, self._adopt)
            if received.error:
                assert self.node.snapshot is before
            self.session.receive(received.request, 1.0)

    def _adopt(self, snapshot: Snapshot) -> None:
        if self.picky:
            raise TradewindError("no")

    def run(self, event: tuple[str, str]) -> None:
        what, name = event
        self.picky = what == "refuse"
        match what:
            case "put":
                self.held[name] = self.revision + 1
                self.publish()
            case "remove":
                if self.held.pop(name, None) is not None:
                    self.publish()
            case "deliver":
                self.send()
                self.answer()
            case "send":
                self.send()
            case "answer" | "refuse":
                self.answer()
            case "reconnect":
                self.connect()
            case "restart":
                self.node = Subscription("edge/tokyo", self.node.snapshot)
                self.connect()


@settings(max_examples=300)
@given(st.lists(Event, min_size=5, max_size=40))
def test_whatever_happens_the_node_ends_with_what_is_published(
    events: list[tuple[str, str]],
) -> None:
    pair = Pair()
    for event in events:
        pair.run(event)
    pair.held["last"] = pair.revision + 1
    pair.publish()
    pair.picky = False
    for _ in range(3):
        pair.send()
        pair.answer()
    assert contents(pair.node.snapshot) == contents(pair.deltas.current.snapshot)
    assert pair.node.snapshot.revision == pair.revision == pair.session.acked_revision
    assert pair.session.nack is None
    assert pair.session.next_response(FRESH, 100.0) is None


def respond(*entries: discovery.Resource, **changes: Any) -> discovery.DeltaDiscoveryResponse:
    fields = {"system_version_info": "9", "type_url": codec.TYPE_URL, "nonce": "n"} | changes
    return discovery.DeltaDiscoveryResponse(resources=list(entries), **fields)


def broken(value: bytes, name: str = "Region/a", type_url: str = codec.TYPE_URL) -> Any:
    entry = discovery.Resource(name=name, version="1")
    entry.resource.type_url = type_url
    entry.resource.value = value
    return entry


@pytest.mark.parametrize(
    ("response", "told"),
    [
        (respond(type_url="x"), "type_url"),
        (respond(system_version_info="-1"), "a revision, in decimal"),
        (respond(system_version_info="9" * 30), "a revision, in decimal"),
        (respond(broken(b"\xff\xff")), "a resource"),
        (respond(broken(b"", type_url="y")), "type_url"),
        (respond(broken(codec.pack(region("b")).resource.value)), "the name it travels under"),
        (respond(codec.pack(resource("Model", "m", regions=["x"], context_tokens=1))), "Region"),
        (respond(removed_resources=["Region/singapore"]), "a known Region"),
    ],
)
def test_a_response_that_is_wrong_changes_nothing(
    response: discovery.DeltaDiscoveryResponse, told: str
) -> None:
    before = Snapshot.build(5, world())
    node = Subscription("edge/tokyo", before)
    received = node.receive(response)
    assert told in received.error
    assert received.request.response_nonce == "n"
    assert told in received.request.error_detail.message
    assert received.snapshot is None
    assert node.snapshot is before


def test_every_mistake_is_in_the_nack() -> None:
    bad = [
        broken(b"\xff\xff", "Region/a"),
        broken(b"\xff\xff", "Region/b"),
    ]
    error = Subscription("edge/tokyo").receive(respond(*bad)).error
    assert "Region/a" in error
    assert "Region/b" in error


def test_a_long_reason_is_cut() -> None:
    bad = [broken(b"\xff\xff", f"Region/{i}") for i in range(1000)]
    received = Subscription("edge/tokyo").receive(respond(*bad))
    assert len(received.request.error_detail.message) <= 8_000


def test_a_kind_from_the_future_is_passed_over() -> None:
    from topology.wire.gen.tradewind.v1 import resource_pb2

    value = resource_pb2.Resource(kind="Quota", name="q", json=b"{}").SerializeToString()
    node = Subscription("edge/tokyo")
    received = node.receive(respond(broken(value, "Quota/q"), codec.pack(region("a"))))
    assert received.error == ""
    assert list(node.snapshot.regions) == ["a"]
    assert node.open().initial_resource_versions["Quota/q"] == "1"


def test_what_is_on_disk_is_known_by_the_server() -> None:
    snapshot = Snapshot.build(5, world())
    deltas = Deltas(snapshot)
    restarted = Subscription("edge/tokyo", Snapshot.decode(snapshot.encode(), "disk"))
    session = Session("edge/tokyo", EDGE, restarted.open(), deltas, 0.0, 0.0)
    sent = session.next_response(FRESH, 0.0)
    response = discovery.DeltaDiscoveryResponse.FromString(sent)
    assert not response.resources
    assert not response.removed_resources
    assert restarted.receive(response).snapshot is None
    assert restarted.synchronised


def test_nodes_with_the_same_versions_get_the_same_bytes() -> None:
    deltas = Deltas(Snapshot.build(5, world()))
    first = deltas.current
    deltas.publish(first.snapshot.changed(6, [region("dubai", "AE")]))
    held = deltas.recognise(dict(first.versions))
    assert held is first
    assert deltas.body(held, deltas.current) is deltas.body(first, deltas.current)
    assert deltas.current.entries["Region/singapore"] is first.entries["Region/singapore"]


def test_a_node_that_is_ahead_waits_then_follows() -> None:
    ahead = Subscription("edge/tokyo", Snapshot.build(50, world()))
    deltas = Deltas(Snapshot.build(9, world()[:2]))
    session = Session("edge/tokyo", EDGE, ahead.open(), deltas, 0.0, 0.0)
    assert session.next_response(FRESH, 0.0) is None
    stale = discovery.DeltaDiscoveryResponse.FromString(
        session.next_response(Origin("cp-1", 77.0), 60.0)
    )
    received = ahead.receive(stale)
    assert received.origin.stale_since_s == 77.0
    assert received.snapshot is None
    session.receive(received.request, 0.0)
    sent = session.next_response(FRESH, CATCH_UP_S + 1)
    ahead.receive(discovery.DeltaDiscoveryResponse.FromString(sent))
    assert ahead.snapshot.revision == 9
    assert len(ahead.snapshot) == 2


def test_a_resource_survives_the_wire() -> None:
    for each in world():
        assert codec.unpack(codec.pack(each)) == each


def test_keys_parse() -> None:
    held: Resource = region("a")
    assert Key.parse(str(held.key)) == held.key
