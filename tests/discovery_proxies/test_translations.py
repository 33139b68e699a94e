"""Which world a proxy is served: the newest, or the one before a rollout."""

from __future__ import annotations

import msgspec

from control_plane.changes.rollout_record import RolloutRecord, place
from control_plane.director.state import State
from control_plane.discovery.proxies.node import Profile
from control_plane.discovery.proxies.translation import ENDPOINTS
from control_plane.discovery.proxies.translations import Translations
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


def test_the_next_expiry() -> None:
    made = Translations()
    assert made.next_expiry_s() is None
    soon, later = drain("dubai", expires_s=NOW_S + 5), drain("frankfurt", expires_s=NOW_S + 9)
    over = drain("singapore", expires_s=NOW_S - 1)
    made.publish(HEAD.changed(8, [soon, later, over]), None, State(), NOW_S)
    assert made.next_expiry_s() == NOW_S + 5
