"""Resources: every mistake at once, and what is written can be read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.validation import InvalidDocument, Problem
from tests.topology.worlds import base, base_documents, document, resources
from topology import resources as res
from topology.snapshot import Snapshot


def problems(raw: object) -> list[tuple[str, str]]:
    with pytest.raises(InvalidDocument) as caught:
        res.parse(raw, "file.yaml")
    assert all(p.source == "file.yaml" for p in caught.value.problems)
    return [(p.path, p.found) for p in caught.value.problems]


def test_every_mistake_is_reported_at_once() -> None:
    raw = document(
        "Region", "Not A Name", city=7, latitude=91, cores=["nowhere"], jurisdiction="europe", x=1
    )
    assert dict(problems(raw)) == {
        "name": "'Not A Name'",
        "spec.x": "an unknown field",
        "spec.city": "7",
        "spec.latitude": "91",
        "spec.longitude": "nothing",
        "spec.jurisdiction": "'europe'",
        "spec.cores[0]": "'nowhere'",
        "spec.capacity_tokens_per_s": "nothing",
    }


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ([], ""),
        ("text", ""),
        ({}, "kind"),
        ({"kind": "Planet", "name": "x", "spec": {}}, "kind"),
        ({"kind": 5, "name": "x", "spec": {}}, "kind"),
        ({"kind": "Region", "name": "x", "spec": []}, "spec"),
        ({"kind": "Region", "name": "x", "spec": {}, "extra": 1}, "extra"),
        (document("Link", "l", source="London", target="Region/a", rtt_ms=1), "spec.source"),
        (
            document("Link", "l", source="Region/a", target="Region/a", rtt_ms=1),
            "spec.target",
        ),
        (document("Link", "l", source="Region/b", target="Region/a", rtt_ms=-1), "spec.rtt_ms"),
        (
            document(
                "Link", "l", source="Region/b", target="Region/a", rtt_ms=1, address="h:99999"
            ),
            "spec.address",
        ),
        (document("Tenant", "t", api_keys=["secret"]), "spec.api_keys[0]"),
        (document("Tenant", "t", residency=[]), "spec.residency"),
        (document("Model", "m", regions=[], context_tokens=1), "spec.regions"),
        (document("Model", "m", regions=["a"], context_tokens=0.5), "spec.context_tokens"),
        (document("Override", "o", region="a", action="explode", reason="r"), "spec.action"),
        (document("Override", "o", region="a", action="drain", reason=""), "spec.reason"),
        (
            document(
                "EdgeSite",
                "e",
                city="E",
                latitude=0,
                longitude=0,
                jurisdiction="GB",
                addresses=["not-an-ip"],
            ),
            "spec.addresses[0]",
        ),
        (
            document(
                "Zone",
                "z.test",
                contact="nobody",
                nameservers=[{"name": "ns"}],
                names=[{"name": "api", "edges": ["*"]}],
            ),
            "spec.contact",
        ),
        (
            document("Policy", "default", ladder=[{"quality": "stale", "enter": 0.8}]),
            "spec.ladder[0].leave",
        ),
        (
            document("Policy", "p", ladder=[{"quality": "stale", "enter": 0.4, "leave": 0.5}]),
            "spec.ladder[0].leave",
        ),
    ],
)
def test_a_mistake_names_its_place(raw: object, path: str) -> None:
    assert path in [found for found, _ in problems(raw)]


def test_what_is_allowed_is_said() -> None:
    with pytest.raises(InvalidDocument) as caught:
        res.parse(document("Override", "o", region="a", action="explode", reason="r"), "f")
    assert caught.value.problems == (
        Problem("f", "spec.action", "'explode'", "one of 'drain', 'failover'"),
    )


def test_round_trip_through_json() -> None:
    for resource in resources(base_documents()):
        assert res.decode(res.encode(resource), "test") == resource


@given(st.binary(max_size=300))
def test_garbage_from_the_store_is_an_error_and_nothing_else(data: bytes) -> None:
    with pytest.raises(InvalidDocument):
        res.decode(data, "etcd")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(st.sampled_from(sorted(res.KINDS)), json_values)
def test_any_spec_is_built_or_refused_with_problems(kind: str, spec: object) -> None:
    try:
        res.parse({"kind": kind, "name": "x", "spec": spec}, "f")
    except InvalidDocument as error:
        assert error.problems


@given(
    st.sampled_from(base_documents()),
    st.sampled_from(["city", "latitude", "regions", "api_keys", "rtt_ms", "cores", "models"]),
    json_values,
)
def test_the_walk_and_msgspec_agree(raw: dict[str, object], field: str, value: object) -> None:
    """Whatever passes the walk converts; whatever fails it has a path."""
    spec = dict(raw["spec"]) | {field: value}  # type: ignore[call-overload]
    try:
        resource = res.parse(raw | {"spec": spec}, "f")
    except InvalidDocument as error:
        assert all(p.allowed for p in error.problems)
    else:
        assert res.decode(res.encode(resource), "f") == resource


@pytest.mark.parametrize(
    ("kind", "spec", "path"),
    [
        ("Policy", {"overload": {"queue_target_ms": 10**400}}, "spec.overload.queue_target_ms"),
        ("Policy", {"overload": {"concurrency_max": 10**400}}, "spec.overload.concurrency_max"),
        ("Policy", {"cache": {"epoch": 10**5000}}, "spec.cache.epoch"),
        ("Policy", {"cache": {"stale_s": -(10**400)}}, "spec.cache.stale_s"),
        ("Policy", {"cache_max_bytes": 2**63}, "spec.cache_max_bytes"),
        ("Policy", {"rollout": {"steps": [10**400]}}, "spec.rollout.steps[0]"),
        (
            "Policy",
            {"ladder": [{"quality": "stale", "enter": 10**400, "leave": 1}]},
            "spec.ladder[0].enter",
        ),
        (
            "Policy",
            {"ladder": [{"quality": "full"}, {"quality": "full"}]},
            "spec.ladder[1].quality",
        ),
        (
            "Policy",
            {
                "ladder": [
                    {"quality": "stale", "tiers": ["batch"]},
                    {"quality": "stale", "tiers": ["vip", "batch"]},
                ]
            },
            "spec.ladder[1].quality",
        ),
        (
            "Policy",
            {"overload": {"concurrency_min": 50, "concurrency_max": 2}},
            "spec.overload.concurrency_max",
        ),
        ("Policy", {"overload": {"user_window_s": 5e-324}}, "spec.overload.user_window_s"),
        ("Policy", {"overload": {"throttle_window_s": 1e-320}}, "spec.overload.throttle_window_s"),
        ("Policy", {"outliers": {"hold_s": 60, "hold_max_s": 30}}, "spec.outliers.hold_max_s"),
        ("Tenant", {"weight": 10**400}, "spec.weight"),
        ("Tenant", {"deadline_ms": 2**64}, "spec.deadline_ms"),
    ],
)
def test_absurd_figures_are_mistakes(kind: str, spec: dict[str, object], path: str) -> None:
    """A figure that no node could compute with is refused here: it would stop them all."""
    with pytest.raises(InvalidDocument) as caught:
        res.parse({"kind": kind, "name": "default", "spec": spec}, "f")
    assert path in [problem.path for problem in caught.value.problems]
    assert len(str(caught.value)) < 500


def test_a_step_may_be_there_for_each_tier_apart() -> None:
    rungs = [
        {"quality": "stale", "enter": 0.5, "leave": 0.1, "tiers": ["batch"]},
        {"quality": "stale", "enter": 0.9, "leave": 0.1, "tiers": ["standard"]},
    ]
    assert res.parse({"kind": "Policy", "name": "default", "spec": {"ladder": rungs}}, "f")


def test_schema_covers_every_kind() -> None:
    definitions = res.json_schema()["$defs"]
    for cls in res.KINDS.values():
        assert definitions[cls.__name__]["type"] == "object"


def test_dangling_references_are_all_reported() -> None:
    with pytest.raises(InvalidDocument) as caught:
        base(
            document("Route", "bad", models=["ghost"], tenants=["none"], regions=["atlantis"]),
            document("Override", "o", region="atlantis", action="drain", reason="r"),
            document("Tenant", "thief", api_keys=["sha256:" + "a" * 64]),
            *(
                document("Model", name, regions=["singapore"], context_tokens=1, substitute=other)
                for name, other in (("m", "ghost"), ("narcissus", "narcissus"))
            ),
        )
    assert {(p.source, p.path) for p in caught.value.problems} == {
        ("Route/bad", "spec.models[0]"),
        ("Route/bad", "spec.tenants[0]"),
        ("Route/bad", "spec.regions[0]"),
        ("Override/o", "spec.region"),
        ("Tenant/thief", "spec.api_keys[0]"),
        ("Model/m", "spec.substitute"),
        ("Model/narcissus", "spec.substitute"),
    }


def test_snapshot_round_trip_and_change() -> None:
    before = base()
    after = Snapshot.decode(before.encode(), "disk")
    assert list(after) == list(before)
    assert after.revision == before.revision
    smaller = after.changed(2, [], [res.Key("Tenant", "eurobank")])
    assert "eurobank" not in smaller.tenants
    assert "eurobank" in after.tenants
    assert smaller.revision == 2


@given(st.binary(max_size=200))
def test_a_corrupt_snapshot_file_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidDocument):
        Snapshot.decode(data, "disk")


def test_tenant_of_key() -> None:
    snapshot = base()
    assert snapshot.tenant_of_key("sha256:" + "a" * 64) == "acme"
    assert snapshot.tenant_of_key("sha256:" + "c" * 64) is None
