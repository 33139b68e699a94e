"""The director's word on the wire: both halves against each other, without a socket."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from envoy.service.discovery.v3 import discovery_pb2 as discovery
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.directives.state import Drain, Quota, State, Verdict, directive_for
from control_plane.discovery.deltas import Deltas
from control_plane.discovery.directed import Directed, changes
from control_plane.discovery.errors import InvalidSubscription
from control_plane.discovery.session import CATCH_UP_S, Session
from runtime.errors import TradewindError
from runtime.identity import Principal
from runtime.validation import InvalidDocument
from topology import directive as directives
from topology.directive import NONE, Directive
from topology.snapshot import Snapshot
from topology.wire import codec
from topology.wire.codec import DirectiveVersion
from topology.wire.directive_subscription import DirectiveSubscription
from topology.wire.subscription import Origin, Subscription

FRESH = Origin("cp-1")
STALE = Origin("cp-1", 77.0)
NODE = "edge/tokyo"


def state(number: int, term: int = 5, **fields: Any) -> State:
    return State(term=term, number=number, director="cp-1", **fields)


def drain(percent: float) -> Drain:
    return Drain(region="dubai", percent=percent, target=100.0, step_at_s=0.0)


def shares(edge: str, region: str) -> dict[str, dict[str, dict[str, float]]]:
    return {edge: {"standard": {region: 1.0}}}


class Line:
    """A server and a node, and nothing between them."""

    def __init__(self, node: str = NODE, now: State | None = None) -> None:
        self.directed = Directed()
        if now is not None:
            self.directed.publish(now, fresh=True)
        self.deltas = Deltas(Snapshot.empty())
        self.node = DirectiveSubscription(node)
        self.picky = False
        self.connect()

    def connect(self) -> None:
        principal = Principal(*self.node.node_id.split("/")[:2])
        hello = Subscription(self.node.node_id).open()
        self.session = Session(
            self.node.node_id, principal, hello, self.deltas, 0.0, 0.0, self.directed
        )
        self.session.receive(discovery.DeltaDiscoveryRequest(type_url=codec.TYPE_URL), 0.0)
        greeting = discovery.DeltaDiscoveryResponse.FromString(self._ask(FRESH, 0.0) or b"")
        self.session.receive(
            discovery.DeltaDiscoveryRequest(type_url=codec.TYPE_URL, response_nonce=greeting.nonce),
            0.0,
        )
        self.session.receive(self.node.open(), 0.0)

    def publish(self, now: State, *, fresh: bool = True) -> None:
        if self.directed.publish(now, fresh=fresh).concerns(self.node.node_id):
            self.session.directive_changed()

    def _ask(self, origin: Origin, now_s: float) -> bytes | None:
        return self.session.next_response(origin, now_s)

    def send(self, now_s: float = 0.0) -> discovery.DeltaDiscoveryResponse | None:
        sent = self._ask(FRESH, now_s)
        return None if sent is None else discovery.DeltaDiscoveryResponse.FromString(sent)

    def answer(self, response: discovery.DeltaDiscoveryResponse) -> str:
        received = self.node.receive(response, self._adopt)
        self.session.receive(received.request, 1.0)
        return received.error

    def settle(self, now_s: float = 0.0) -> int:
        """Send and answer until nothing is left to send; how many responses that took."""
        for count in range(20):
            response = self.send(now_s)
            if response is None:
                return count
            self.answer(response)
        raise AssertionError("it never settles")

    def _adopt(self, _: Directive) -> None:
        if self.picky:
            raise TradewindError("no")


def test_a_node_is_told_its_own() -> None:
    line = Line()
    assert line.settle() == 0, "no director has spoken"
    now = state(3, shares=shares("tokyo", "singapore"), drains={"dubai": Drain("dubai", 5, 9, 0)})
    line.publish(now)
    assert line.settle() == 1
    assert line.node.directive == directive_for(now, NODE)
    assert line.session.acked_directive == 3


def test_only_what_concerns_a_node_is_sent_to_it() -> None:
    line = Line(now=state(3, shares=shares("tokyo", "singapore")))
    assert line.settle() == 1
    line.publish(state(4, shares=shares("tokyo", "singapore") | shares("london", "dubai")))
    assert line.settle() == 0
    assert line.session.acked_directive == 4, "what it holds is what number 4 says, too"
    line.publish(state(5, shares=shares("tokyo", "dubai")))
    assert line.session.acked_directive == 3
    assert line.settle() == 1
    assert line.session.acked_directive == 5


def test_a_number_of_its_own_is_to_be_acknowledged() -> None:
    quotas = {"acme": Quota(given={NODE: 5.0})}
    line = Line(now=state(3, quotas=quotas, numbers={NODE: 3}))
    assert line.settle() == 1
    line.publish(state(7, quotas=quotas, numbers={NODE: 3}))
    assert line.settle() == 0
    assert line.session.acked_directive == 7, "what it holds is what number 7 says, too"
    line.publish(state(8, quotas=quotas, numbers={NODE: 8}))
    assert line.settle() == 1
    assert line.session.acked_directive == line.node.directive.number == 8


def test_a_replica_that_lags_sends_a_node_with_quotas_nothing_older_either() -> None:
    """Its quotas stay as they are while drains move on: they must not be moved back."""
    quotas = {"acme": Quota(given={NODE: 5.0})}
    ahead = Line(now=state(3, quotas=quotas, numbers={NODE: 3}, drains={"dubai": drain(10.0)}))
    ahead.settle()
    ahead.publish(state(7, quotas=quotas, numbers={NODE: 3}, drains={"dubai": drain(50.0)}))
    assert ahead.settle() == 1
    lagging = Line(now=state(5, quotas=quotas, numbers={NODE: 3}, drains={"dubai": drain(30.0)}))
    lagging.node = ahead.node
    lagging.connect()
    assert lagging.send(0.0) is None
    late = lagging.directed.body(NODE)
    told = lagging.node.receive(discovery.DeltaDiscoveryResponse.FromString(late))
    assert "older than what is held" in told.error
    assert lagging.node.directive.drains == {"dubai": 50.0}


def test_one_response_at_a_time_and_then_the_newest() -> None:
    line = Line(now=state(1))
    first = line.send()
    assert first is not None
    line.publish(state(2, shares=shares("tokyo", "dubai")))
    line.publish(state(3, shares=shares("tokyo", "frankfurt")))
    assert line.send() is None
    line.answer(first)
    assert line.settle() == 1
    assert line.node.directive.shares["standard"] == {"frankfurt": 1.0}


def test_a_node_that_comes_back_is_not_told_what_it_holds() -> None:
    now = state(3, shares=shares("tokyo", "singapore"))
    line = Line(now=now)
    assert line.settle() == 1
    kept = line.node.encode()
    line.connect()
    assert line.settle() == 0
    assert line.session.acked_directive == 3
    line.node = DirectiveSubscription(NODE)
    line.node.restore(kept, "disk")
    assert line.node.directive == directive_for(now, NODE)
    line.connect()
    assert line.settle() == 0
    # Another director with the same opinion tells it again, so that its predecessor's word ends.
    line.publish(state(4, term=6, shares=shares("tokyo", "singapore")))
    assert line.settle() == 1
    assert line.node.directive.term == 6


@pytest.mark.parametrize("term", [5, 7, 8])
def test_a_lower_number_is_refused_whatever_its_term(term: int) -> None:
    line = Line(now=state(9, term=7))
    line.settle()
    late = Line(now=state(8, term=term, shares=shares("tokyo", "dubai")))
    response = late.send()
    assert response is not None
    assert "older than what is held" in line.node.receive(response).error
    assert line.node.directive.number == 9


def test_after_the_store_was_wiped_the_first_word_goes_to_all_without_a_withdrawal() -> None:
    line = Line(now=state(1_795_525_970, term=151, drains={"dubai": drain(40.0)}))
    line.settle()
    held: list[Directive] = []
    line.publish(state(1_795_525_979, term=2, drains={"dubai": drain(45.0)}))
    response = line.send()
    assert response is not None
    line.node.receive(response, held.append)
    assert [(d.term, d.drains) for d in held] == [(2, {"dubai": 45.0})]


def test_a_replica_that_has_yet_to_see_a_wiped_store_brings_nothing_back() -> None:
    line = Line(now=state(1_795_525_979, term=2, shares=shares("tokyo", "dubai")))
    line.settle()
    before = Line(now=state(1_795_525_970, term=151, shares=shares("tokyo", "singapore")))
    before.node = line.node
    before.connect()
    assert before.send(0.0) is None
    assert before.session.waits_for_catch_up


def test_a_replica_that_lags_keeps_its_word_to_itself() -> None:
    ahead = Line(now=state(9, term=7))
    ahead.settle()
    lagging = Line(now=state(4, term=6, shares=shares("tokyo", "dubai")))
    lagging.node = ahead.node
    lagging.connect()
    assert lagging.send(0.0) is None
    assert lagging.session.waits_for_catch_up
    lagging.publish(state(10, term=7, shares=shares("tokyo", "frankfurt")))
    assert lagging.settle() == 1
    assert lagging.node.directive.number == 10


def test_a_store_that_was_set_back_is_followed_in_the_end() -> None:
    ahead = Line(now=state(9, term=7))
    ahead.settle()
    restored = Line(now=state(2, term=3, shares=shares("tokyo", "dubai")))
    restored.node = ahead.node
    restored.connect()
    assert restored.settle(CATCH_UP_S / 2) == 0
    assert restored.settle(CATCH_UP_S + 1) == 2
    assert (restored.node.directive.term, restored.node.directive.number) == (3, 2)


def test_a_replica_without_the_store_withdraws_nothing() -> None:
    ahead = Line(now=state(9, term=7))
    ahead.settle()
    stale = Line()
    stale.publish(state(2, term=3), fresh=False)
    stale.node = ahead.node
    stale.connect()
    assert stale.settle(100.0) == 0
    assert stale.node.directive.term == 7


def test_a_withdrawal_that_is_refused_is_not_repeated() -> None:
    ahead = Line(now=state(9, term=7))
    ahead.settle()
    restored = Line(now=state(2, term=3))
    restored.node = ahead.node
    restored.connect()
    restored.picky = True
    assert restored.settle(CATCH_UP_S + 1) == 1
    assert restored.node.directive.term == 7


def test_a_refused_directive_is_sent_again_when_it_changes() -> None:
    line = Line(now=state(1))
    line.settle()
    line.picky = True
    line.publish(state(2, shares=shares("tokyo", "dubai")))
    assert line.settle() == 1
    assert line.session.directive_nack is not None
    assert line.session.directive_nack.reason == "no"
    assert line.session.acked_directive == 1
    assert line.session.nack is None, "the configuration was not refused"
    line.picky = False
    line.publish(state(3, shares=shares("tokyo", "dubai")))
    assert line.settle() == 0, "the same for this node"
    line.publish(state(4, shares=shares("tokyo", "frankfurt")))
    assert line.settle() == 1
    assert line.session.directive_nack is None
    assert line.session.acked_directive == 4


def test_nodes_that_are_told_the_same_share_the_bytes() -> None:
    directed = Directed()
    directed.publish(state(1, shares=shares("tokyo", "dubai")), fresh=True)
    bodies = {
        node: codec.unpack_directive(
            discovery.DeltaDiscoveryResponse.FromString(directed.body(node)).resources[0]
        )
        for node in ("edge/tokyo/0", "edge/tokyo/1", "edge/london", "core/dubai", "dns/a")
    }
    assert bodies == {node: directive_for(directed.state, node) for node in bodies}
    assert len(directed._encoded) == 2


REVISION = st.integers(1, 2)
Regions = st.sampled_from(["dubai", "frankfurt"])
Nodes = st.sampled_from(["edge/tokyo", "edge/london/0", "core/dubai"])


@st.composite
def states(draw: st.DrawFn, number: int = 1) -> State:
    edges = st.dictionaries(st.sampled_from(["tokyo", "london"]), Regions, max_size=2)
    given_to = st.dictionaries(Nodes, st.sampled_from([1.0, 2.0]), max_size=3)
    return State(
        term=draw(st.integers(1, 2)),
        number=number,
        shares={e: {"standard": {r: 1.0}} for e, r in draw(edges).items()},
        shed={e: {"standard": 0.5} for e in draw(edges)},
        verdicts={r: Verdict(False, 0.0) for r in draw(st.sets(Regions))},
        drains={
            r: Drain(
                r, draw(st.sampled_from([1.0, 2.0])), 9.0, 0.0, override_revision=draw(REVISION)
            )
            for r in draw(st.sets(Regions))
        },
        quotas={
            t: Quota(given=draw(given_to), floors=draw(given_to))
            for t in draw(st.sets(st.sampled_from("xy")))
        },
        numbers={n: draw(st.integers(1, 2)) for n in draw(st.sets(Nodes))},
    )


@settings(max_examples=300)
@given(states(number=1), states(number=2))
def test_whose_directive_changes_is_found(before: State, after: State) -> None:
    """Against the naive way: build both and compare."""
    changed = changes(before, after)
    for node in ("edge/tokyo", "edge/london/0", "core/dubai", "dns/a"):
        old, new = (
            msgspec.structs.replace(directive_for(told, node), number=told.numbers.get(node, 0))
            for told in (before, after)
        )
        if old != new:
            assert changed.concerns(node)


@settings(max_examples=200)
@given(st.lists(st.tuples(states(), st.sampled_from(["send", "settle", "refuse", "connect"]))))
def test_whatever_happens_the_node_ends_with_what_is_told(
    steps: list[tuple[State, str]],
) -> None:
    line = Line(node="edge/london/0")
    term = 1
    for number, (now, what) in enumerate(steps, 1):
        term = max(term, now.term)
        line.publish(msgspec.structs.replace(now, number=number, term=term, numbers={}))
        line.picky = what == "refuse"
        if what == "connect":
            line.connect()
        elif what == "send":
            line.send()
        elif response := line.send():
            line.answer(response)
    line.picky = False
    line.connect()
    line.publish(state(1000, term=term))
    line.settle(CATCH_UP_S + 1)
    told = directive_for(line.directed.state, "edge/london/0")
    without = msgspec.structs.replace
    assert without(line.node.directive, number=0) == without(told, number=0)


def entry(json: bytes, name: str = NODE, node: str = NODE) -> discovery.DeltaDiscoveryResponse:
    packed = codec.pack_directive(node, json, DirectiveVersion(1, 1, "x"))
    packed.name = name
    return discovery.DeltaDiscoveryResponse(
        type_url=codec.DIRECTIVE_TYPE_URL, nonce="n", resources=[packed]
    )


@pytest.mark.parametrize(
    ("response", "told"),
    [
        (entry(b"{"), "a directive"),
        (entry(b"\xff"), "a directive"),
        (entry(b"{}", name="edge/london"), "the directive of edge/tokyo"),
        (entry(b"{}", node="edge/london"), "the name it travels under"),
        (entry(b'{"shares":{"vip":{"dubai":1.5}}}'), "shares.vip.dubai"),
        (entry(b'{"shares":{"vip":{"dubai":0.6,"x":0.6}}}'), "1.2 in all"),
        (entry(b'{"shed":{"vip":-1}}'), "shed.vip"),
        (entry(b'{"drains":{"dubai":101}}'), "drains.dubai"),
        (entry(b'{"quotas":{"acme":-2}}'), "quotas.acme"),
    ],
)
def test_a_directive_that_is_wrong_changes_nothing(
    response: discovery.DeltaDiscoveryResponse, told: str
) -> None:
    node = DirectiveSubscription(NODE)
    received = node.receive(response)
    assert told in received.error
    assert told in received.request.error_detail.message
    assert received.request.response_nonce == "n"
    assert node.directive is NONE


def test_what_cannot_be_told_is_not_kept() -> None:
    for data in (b"", b"{}", b'{"version":"1","directive":{"node":"edge/london"}}'):
        node = DirectiveSubscription(NODE)
        with pytest.raises(InvalidDocument):
            node.restore(data, "disk")
        assert node.directive is NONE


def test_another_nodes_directive_is_not_served() -> None:
    line = Line(now=state(1))
    request = discovery.DeltaDiscoveryRequest(type_url=codec.DIRECTIVE_TYPE_URL)
    request.resource_names_subscribe.append("edge/london")
    with pytest.raises(InvalidSubscription):
        line.session.receive(request, 0.0)


@pytest.mark.parametrize("text", ["", "x", "1", "1.2", "1.2.ab", "-1.2.c", "9" * 99, "1.²."])
def test_any_text_is_some_version(text: str) -> None:
    version = DirectiveVersion.parse(text)
    assert version.term >= 0
    assert DirectiveVersion.parse(str(version)) == version


def test_a_directive_survives_the_wire() -> None:
    told = Directive(
        NODE, 1, 2, {"vip": {"dubai": 0.5}}, drains={"dubai": 5.0}, down=("x",), quotas={"t": 1.0}
    )
    assert directives.decode(directives.encode(told), "wire") == told
