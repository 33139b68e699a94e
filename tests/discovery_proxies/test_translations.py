"""Which world a proxy is served: the newest, or the one before a rollout."""

from __future__ import annotations

import msgspec
from envoy.service.discovery.v3 import discovery_pb2 as discovery

from control_plane.directives.state import State
from control_plane.discovery.proxies.node import Profile
from control_plane.discovery.proxies.session import ProxySession
from control_plane.discovery.proxies.translation import CLUSTER, ENDPOINTS, LISTENER, Bundle
from control_plane.discovery.proxies.translations import Translations
from control_plane.rollout_record import RolloutRecord, place
from runtime.identity import Principal
from tests.discovery_proxies.worlds import NOW_S, drain, resources, tenant
from topology import resources as res
from topology.snapshot import Snapshot

ENVOY = Profile("envoy", place="tokyo")
HEAD = Snapshot.build(7, resources())
EARLY, LATE = sorted(
    (Principal("proxy", f"p{i}") for i in range(20)), key=lambda p: place(str(p), 3)
)[::19]


def rollout(status: str = "canary", percent: float = 50.0) -> RolloutRecord:
    """Of the change that made acme a tenant of batch: before, it was a VIP."""
    before = res.to_document(HEAD.get(res.Key("Tenant", "acme")), stored=True)  # type: ignore[arg-type]
    return msgspec.convert(
        {
            "number": 3,
            "author": "operator/olga",
            "reason": "a test",
            "started_s": NOW_S,
            "status": status,
            "percent": percent,
            "stage_since_s": NOW_S,
            "before": {"Tenant/acme": before},
            "revision": 8,
            "base_revision": 7,
        },
        RolloutRecord,
    )


def test_proxies_alike_share_one() -> None:
    made = Translations()
    made.publish(HEAD, None, State(), NOW_S)
    assert made.bundle_for(ENVOY, EARLY) is made.bundle_for(ENVOY, LATE)


def test_in_a_rollout_each_proxy_has_the_old_or_the_new() -> None:
    made = Translations()
    changed = HEAD.changed(8, [tenant("acme", tier="batch", models=["smol"])])
    made.publish(changed, rollout(), State(), NOW_S)
    new, old = made.bundle_for(ENVOY, EARLY), made.bundle_for(ENVOY, LATE)
    assert any(name.startswith("batch:") for name in new.clusters)
    assert not any(name.startswith("batch:") for name in old.clusters)
    assert (new.staged, old.staged) == (False, True)
    assert (new.revision, old.revision) == (8, 7)
    # A drain reaches both.
    drained = changed.changed(9, [drain("frankfurt")])
    made.publish(drained, rollout(), State(), NOW_S)
    for principal in (EARLY, LATE):
        packed = made.bundle_for(ENVOY, principal).resources[ENDPOINTS]["standard:frankfurt"]
        assert b"127.0.0.2" not in packed.value
    # The rest follow, and nothing is left of the old.
    made.publish(drained, rollout(percent=100.0), State(), NOW_S)
    assert made.bundle_for(ENVOY, LATE) is made.bundle_for(ENVOY, EARLY)
    made.publish(drained, rollout(status="done"), State(), NOW_S)
    assert not made.bundle_for(ENVOY, LATE).staged


def settled(session: ProxySession, bundle: Bundle, refuse: str = "") -> None:
    """Accept all that comes, but for one type."""
    while (data := session.next_response(bundle, 0.0)) is not None:
        response = discovery.DiscoveryResponse.FromString(data)
        answer = discovery.DiscoveryRequest(
            type_url=response.type_url,
            response_nonce=response.nonce,
            version_info=response.version_info,
        )
        if response.type_url == refuse:
            answer.error_detail.message = "no"
        session.receive(answer, 1.0)


def asking(principal: Principal) -> ProxySession:
    session = ProxySession(str(principal), principal, ENVOY, "cp-1", 0.0, 0.0, delta=False)
    for url in (CLUSTER, LISTENER):
        session.receive(discovery.DiscoveryRequest(type_url=url), 0.0)
    return session


def test_no_change_is_blamed_for_what_it_did_not_do() -> None:
    """In a rollout a proxy comes whose listener cannot be opened, and another that refuses the
    change itself: the director takes a change back for a refusal at its revision or above."""
    made = Translations()
    changed = HEAD.changed(8, [tenant("acme", tier="batch", models=["smol"])])
    drained = changed.changed(9, [drain("frankfurt")])
    for head in (changed, drained):
        made.publish(head, rollout(), State(), NOW_S)
        bundle = made.bundle_for(ENVOY, EARLY)
        lame, picky = asking(EARLY), asking(EARLY)
        settled(lame, bundle, refuse=LISTENER)
        assert lame.nack is not None
        assert lame.nack.revision == 7
        assert lame.acked_revision == head.revision
        settled(picky, bundle, refuse=CLUSTER)
        assert picky.nack is not None
        assert picky.nack.revision == head.revision
        assert picky.acked_revision == 0


def test_a_proxy_is_staged_until_it_has_what_the_rollout_brings() -> None:
    made = Translations()
    changed = HEAD.changed(8, [tenant("acme", tier="batch", models=["smol"])])
    drained = changed.changed(9, [drain("frankfurt")])  # from here on, 9 is also that of before
    made.publish(drained, rollout(), State(), NOW_S)
    one, two = asking(LATE), asking(LATE)
    for session in (one, two):
        settled(session, made.bundle_for(ENVOY, LATE))
        assert (session.acked_revision, session.staged) == (9, True)
    made.publish(drained, rollout(percent=100.0), State(), NOW_S)
    response = one.next_response(made.bundle_for(ENVOY, LATE), 0.0)
    assert response is not None
    assert (one.acked_revision, one.staged) == (9, True)
    settled(two, made.bundle_for(ENVOY, LATE))
    assert (two.acked_revision, two.staged) == (9, False)
    refused = discovery.DiscoveryResponse.FromString(response)
    answer = discovery.DiscoveryRequest(type_url=refused.type_url, response_nonce=refused.nonce)
    answer.error_detail.message = "no"
    one.receive(answer, 1.0)
    assert one.next_response(made.bundle_for(ENVOY, LATE), 0.0) is None
    assert one.nack is not None
    assert (one.nack.revision, one.staged) == (9, False), "as one that has refused the change"


def test_the_next_expiry() -> None:
    made = Translations()
    assert made.next_expiry_s() is None
    soon, later = drain("dubai", expires_s=NOW_S + 5), drain("frankfurt", expires_s=NOW_S + 9)
    over = drain("singapore", expires_s=NOW_S - 1)
    made.publish(HEAD.changed(8, [soon, later, over]), None, State(), NOW_S)
    assert made.next_expiry_s() == NOW_S + 5
