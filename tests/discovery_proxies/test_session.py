"""One proxy's stream, both ways of writing it, without a socket: order, ACK, NACK, bounds."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.service.discovery.v3 import discovery_pb2 as discovery

from control_plane.directives.state import State
from control_plane.discovery.errors import InvalidSubscription
from control_plane.discovery.proxies.session import WARM_S
from control_plane.discovery.proxies.spread import World
from control_plane.discovery.proxies.subscription import NAMES_MAX
from control_plane.discovery.proxies.translation import (
    CLUSTER,
    ENDPOINTS,
    LISTENER,
    ROUTES,
    TYPES,
    Bundle,
)
from tests.discovery_proxies.peer import PROFILE, Peer, bundle, names_of, retiered, translate
from tests.discovery_proxies.worlds import drain, resource, tenant, world

V2 = "type.googleapis.com/envoy.api.v2.Cluster"


@pytest.fixture(params=[True, False], ids=["delta", "state-of-the-world"])
def peer(request: Any) -> Peer:
    return Peer(delta=request.param)


def started(peer: Peer, there: Bundle) -> Peer:
    """A peer that holds everything, having asked as Envoy does."""
    peer.ask(CLUSTER)
    peer.settle(there)
    peer.ask(LISTENER)
    peer.settle(there)
    peer.ask(ROUTES, "tradewind")
    peer.settle(there)
    assert peer.session.acked_revision == there.revision
    return peer


def test_everything_is_served_once_and_acknowledged(peer: Peer) -> None:
    there = bundle()
    started(peer, there)
    assert peer.log == [CLUSTER, ENDPOINTS, LISTENER, ROUTES]
    for url in TYPES:
        expected = {p.value for p in there.resources[url].values()}
        assert set(peer.held[url].values()) == expected
    assert peer.settle(there) == []
    assert peer.session.unanswered_for_s(100.0) == 0.0


def test_asked_in_any_order_clusters_come_first(peer: Peer) -> None:
    there = bundle()
    for url in (ROUTES, LISTENER, CLUSTER):
        peer.ask(url, *(["tradewind"] if url == ROUTES else []))
    assert peer.settle(there) == [CLUSTER, ENDPOINTS, LISTENER, ROUTES]


def test_one_response_per_type_is_in_flight(peer: Peer) -> None:
    peer.ask(CLUSTER)
    first = peer.next(bundle())
    assert peer.next(retiered("batch")) is None
    assert peer.session.unanswered_for_s(9.0) == 9.0
    peer.accept(first)
    assert peer.next(retiered("batch")) is not None


def test_a_drain_is_one_response_of_endpoints(peer: Peer) -> None:
    started(peer, bundle())
    after = bundle(drain("singapore", 30))
    assert peer.settle(after) == [ENDPOINTS]
    assert set(peer.held[ENDPOINTS].values()) == {
        p.value for p in after.resources[ENDPOINTS].values()
    }


def test_make_before_break(peer: Peer) -> None:
    """Another class for a tenant: the new cluster is warm before routes name it, and the old one
    is there until they do not."""
    started(peer, bundle())
    after = retiered("batch")
    old, new = "vip:dubai|frankfurt|singapore", "batch:dubai|frankfurt|singapore"
    clusters = peer.next(after)
    assert clusters.type_url == CLUSTER
    assert peer.next(after) is None, "routes wait for the clusters"
    peer.accept(clusters)
    assert peer.next(after) is None, "and for their endpoints"
    assert peer.waiting()
    peer.ask(ENDPOINTS, *sorted({*peer.names[ENDPOINTS], new}))
    endpoints = peer.next(after)
    assert endpoints.type_url == ENDPOINTS
    assert old in names_of(peer, endpoints) or peer.delta
    assert peer.next(after) is None
    peer.accept(endpoints)
    routes = peer.next(after)
    assert routes.type_url == ROUTES
    assert peer.next(after) is None, "the old cluster stays until the routes are accepted"
    peer.accept(routes)
    gone = peer.next(after)
    assert gone.type_url == CLUSTER
    if peer.delta:
        assert list(gone.removed_resources) == [old]
    else:
        assert old not in names_of(peer, gone)


def test_a_cluster_that_outlives_its_class_is_drained_too(peer: Peer) -> None:
    """While the routes that name it are not replaced, an old cluster hears of drains."""
    started(peer, bundle())
    after = translate(
        world(tenant("acme", tier="batch", models=["smol"]), drain("singapore")), PROFILE
    )
    seen: dict[str, bytes] = {}
    while (response := peer.next(after)) is not None:
        if response.type_url == ROUTES:
            peer.refuse(response)
            continue
        if response.type_url == ENDPOINTS:
            values = [e.resource.value if peer.delta else e.value for e in response.resources]
            seen |= {str(i): value for i, value in enumerate(values)}
        peer.accept(response)
        if response.type_url == CLUSTER:
            peer.ask(ENDPOINTS, *sorted(after.clusters | {*peer.names[ENDPOINTS]}))
    old = after.outlived(ENDPOINTS, "vip:dubai|frankfurt|singapore").value
    assert b"singapore" not in old.replace(b"vip:dubai|frankfurt|singapore", b"")
    assert old in seen.values()


def test_a_proxy_that_never_warms_up_gets_its_routes_all_the_same(peer: Peer) -> None:
    started(peer, bundle())
    after = retiered("batch")
    peer.accept(peer.next(after))
    assert peer.next(after) is None
    peer.now_s = WARM_S
    assert peer.next(after).type_url == ROUTES


def test_routes_to_a_refused_cluster_are_never_sent(peer: Peer) -> None:
    started(peer, bundle())
    after = retiered("batch")
    peer.refuse(peer.next(after))
    for now_s in (0.0, WARM_S, 10 * WARM_S):
        peer.now_s = now_s
        assert peer.next(after) is None
    assert not peer.waiting()


def test_a_refusal_is_noted_and_not_repeated(peer: Peer) -> None:
    there = bundle()
    started(peer, there)
    earlier = peer.session.acked_revision
    after = bundle(resource("Policy", "default", attempts=2))
    response = peer.next(after)
    assert response.type_url == ROUTES
    peer.refuse(response, "cannot bind" + "!" * 5_000)
    nack = peer.session.nack
    assert nack is not None
    assert nack.revision == after.revision
    assert nack.reason.startswith("RouteConfiguration: cannot bind")
    assert len(nack.reason) <= 2_000
    assert peer.settle(after) == []
    assert peer.session.acked_revision == earlier
    # What it holds already is no news, and there is nothing left to complain of.
    assert peer.settle(there) == []
    assert peer.session.nack is None
    # Something new is offered again.
    better = bundle(resource("Policy", "default", attempts=1))
    assert peer.settle(better) == [ROUTES]
    assert peer.session.acked_revision == better.revision


def test_a_listener_that_the_proxy_cannot_open_holds_up_no_later_change(peer: Peer) -> None:
    there = bundle()
    peer.ask(CLUSTER)
    peer.ask(LISTENER)
    clusters, listener = peer.next(there), peer.next(there)
    peer.refuse(listener, "cannot bind")
    peer.accept(clusters)
    assert peer.settle(there) == []
    assert peer.session.acked_revision == 0
    later = translate(World(world().snapshot.changed(8, [drain("dubai")]), State(), 1.0), PROFILE)
    peer.settle(later)
    assert peer.session.acked_revision == 8
    nack = peer.session.nack
    assert nack is not None
    assert nack.revision == there.revision


def test_an_answer_to_something_older_is_ignored(peer: Peer) -> None:
    there = bundle()
    peer.ask(CLUSTER)
    first = peer.next(there)
    peer.accept(first)
    peer.ask(ENDPOINTS, *sorted(there.clusters))
    peer.settle(there)
    second = peer.next(retiered("batch"))
    peer.refuse(first, "too late")
    assert peer.session.nack is None
    peer.accept(second)
    assert peer.session.unanswered_for_s(10.0) == 0.0


def test_names_come_and_go(peer: Peer) -> None:
    there = bundle()
    one, two = sorted(there.clusters)[:2]
    peer.ask(ENDPOINTS, one)
    peer.settle(there)
    assert len(peer.held[ENDPOINTS]) == 1
    peer.ask(ENDPOINTS, one, two)
    assert peer.settle(there) == [ENDPOINTS]
    assert len(peer.held[ENDPOINTS]) == 2
    peer.ask(ENDPOINTS, one)
    peer.settle(there)
    # Asked for anew: answered anew, since the proxy may have thrown it away.
    peer.ask(ENDPOINTS, one, two)
    assert peer.settle(there) == [ENDPOINTS]


def test_asked_again_in_so_many_words_it_is_answered_again() -> None:
    """Envoy does that when a cluster that changed warms up."""
    there = bundle()
    peer = started(Peer(delta=False), there)
    names = peer.names[ENDPOINTS]
    again = discovery.DiscoveryRequest(
        type_url=ENDPOINTS,
        resource_names=names,
        response_nonce=peer.session._types[ENDPOINTS].last_nonce,
    )
    peer.session.receive(again, 8.0)
    response = peer.next(there)
    assert response.type_url == ENDPOINTS
    peer.accept(response)
    assert peer.settle(there) == []
    peer = started(Peer(delta=True), there)
    again_delta = discovery.DeltaDiscoveryRequest(
        type_url=ENDPOINTS, resource_names_subscribe=names[:1]
    )
    peer.session.receive(again_delta, 8.0)
    response = peer.next(there)
    assert [entry.name for entry in response.resources] == names[:1]


def test_asked_while_an_answer_is_in_flight_it_is_answered_after_it() -> None:
    there = bundle()
    one, two = sorted(there.clusters)[:2]
    peer = Peer(delta=True)
    peer.ask(ENDPOINTS, one)
    response = peer.next(there)
    peer.ask(ENDPOINTS, one, two)
    peer.accept(response)
    assert [e.name for e in peer.next(there).resources] == [two]


def test_a_name_that_does_not_exist_is_denied() -> None:
    peer = Peer(delta=True)
    peer.ask(LISTENER, "elsewhere")
    response = peer.next(bundle())
    assert list(response.removed_resources) == ["elsewhere"]
    peer.accept(response)
    assert peer.next(bundle()) is None
    whole = Peer(delta=False)
    whole.ask(LISTENER, "elsewhere")
    response = whole.next(bundle())
    assert response is not None
    assert not response.resources


def test_who_comes_back_with_the_same_is_not_sent_it_again() -> None:
    there = bundle()
    peer = started(Peer(delta=True), there)
    versions = {n: f"{p.version}.3" for n, p in there.resources[CLUSTER].items()}
    back = Peer(delta=True, known={CLUSTER: versions})
    back.ask(CLUSTER)
    assert not back.next(there).resources
    gone = Peer(delta=True, known={CLUSTER: versions | {"batch:nowhere": "1"}})
    gone.ask(CLUSTER)
    assert list(gone.next(there).removed_resources) == ["batch:nowhere"]
    peer = Peer(delta=False)
    peer.ask(CLUSTER)
    version = peer.next(there).version_info
    back = Peer(delta=False, known={CLUSTER: version})
    back.ask(CLUSTER)
    assert back.next(there) is None
    assert back.session.acked_revision == there.revision
    stale = Peer(delta=False, known={CLUSTER: "another"})
    stale.ask(CLUSTER)
    assert stale.next(there) is not None


@pytest.mark.parametrize("delta", [True, False])
def test_nobody_is_sent_back_by_a_replica_that_is_behind(delta: bool) -> None:
    newer = {"batch:dubai": "feed.99"} if delta else "feed.99"
    peer = Peer(delta=delta, known={CLUSTER: newer})
    peer.ask(CLUSTER)
    there = bundle()
    assert there.revision < 99
    assert peer.next(there) is None
    assert peer.waiting(), "it may catch up soon"
    peer.now_s = 60.0
    assert peer.session.next_response(there, peer.now_s, stale=True) is None
    assert not peer.waiting(), "until the store is back"
    assert peer.next(there) is not None, "the store says so: it was restored from a backup"


@pytest.mark.parametrize("text", ["", ".", "x.", "x.-1", "x.٣", "x." + "9" * 30, "a.b.c"])
def test_versions_that_are_not_ours(text: str) -> None:
    peer = Peer(delta=True, known={CLUSTER: {"a": text}})
    peer.ask(CLUSTER)
    assert peer.next(bundle()) is not None


def test_types_that_are_not_served_are_answered_once(peer: Peer) -> None:
    peer.ask(V2, "a", "*")
    response = peer.next(bundle())
    assert response.type_url == V2
    assert not response.resources
    if peer.delta:
        assert list(response.removed_resources) == ["a"]
    assert list(peer.session.unsupported) == [V2]
    peer.answer(response)
    peer.ask(V2, "a")
    assert peer.next(bundle()) is None
    for i in range(7):
        peer.ask(f"type.googleapis.com/made.up.{i}")
    with pytest.raises(InvalidSubscription, match="too many"):
        peer.ask("type.googleapis.com/made.up.last")


def test_names_are_bounded(peer: Peer) -> None:
    with pytest.raises(InvalidSubscription, match="more than"):
        peer.ask(ENDPOINTS, *(f"name-{i}" for i in range(NAMES_MAX + 1)))


def test_a_name_is_bounded(peer: Peer) -> None:
    with pytest.raises(InvalidSubscription, match="too long"):
        peer.ask(ENDPOINTS, "x" * 5_000)


def test_without_names_only_clusters_and_listeners_mean_everything(peer: Peer) -> None:
    there = bundle()
    peer.ask(ENDPOINTS)
    response = peer.next(there)
    assert response is None or not response.resources


def test_a_revision_that_changes_nothing_here_counts_as_held(peer: Peer) -> None:
    started(peer, bundle())
    later = translate(
        type(world())(world().snapshot.changed(99, ()), world().state, 1_000.0), PROFILE
    )
    assert peer.settle(later) == []
    assert peer.session.acked_revision == peer.session.sent_revision == 99


def test_who_has_left_is_remembered_in_little(peer: Peer) -> None:
    started(peer, bundle())
    peer.session.leave(50.0)
    assert not peer.session.connected
    assert peer.session.since_s == 50.0
    assert peer.session.acked_revision == bundle().revision
