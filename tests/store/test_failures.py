"""What etcd's errors mean, and what people are told about the store's health."""

from __future__ import annotations

import grpc
import pytest

from control_plane.store.etcd_failures import Kind, failure_of
from control_plane.store.health import Health
from runtime.clock import ManualClock

CODE = grpc.StatusCode


@pytest.mark.parametrize(
    ("code", "text", "kind", "undone"),
    [
        (CODE.UNAVAILABLE, "failed to connect to all addresses; last error: x", "UNREACHED", True),
        (CODE.UNAVAILABLE, "Socket closed", "NO_ANSWER", False),
        (CODE.UNAVAILABLE, "", "NO_ANSWER", False),
        (CODE.UNAVAILABLE, "etcdserver: no leader", "NOT_SERVING", True),
        (CODE.UNAVAILABLE, "etcdserver: leader changed", "NOT_SERVING", False),
        (CODE.UNAVAILABLE, "etcdserver: request timed out", "NOT_SERVING", False),
        (CODE.UNAVAILABLE, "etcdserver: server stopped", "NOT_SERVING", False),
        (CODE.DEADLINE_EXCEEDED, "Deadline Exceeded", "NO_ANSWER", False),
        (CODE.CANCELLED, "context canceled", "NO_ANSWER", False),
        (CODE.UNKNOWN, "anything new", "NO_ANSWER", False),
        (CODE.INTERNAL, "stream terminated by RST_STREAM", "NO_ANSWER", False),
        (CODE.RESOURCE_EXHAUSTED, "etcdserver: too many requests", "NOT_SERVING", True),
        (CODE.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", "REFUSED", True),
        (CODE.RESOURCE_EXHAUSTED, "CLIENT: Received message larger than max", "TOO_LARGE", False),
        (CODE.UNAUTHENTICATED, "etcdserver: invalid auth token", "TOKEN", True),
        (CODE.PERMISSION_DENIED, "etcdserver: permission denied", "REFUSED", True),
        (CODE.UNIMPLEMENTED, "unknown service etcdserverpb.KV", "STRANGER", True),
        (CODE.UNAVAILABLE, "Received http2 header with status: 502", "STRANGER", False),
    ],
)
def test_failures(code: grpc.StatusCode, text: str, kind: str, undone: bool) -> None:
    failure = failure_of(code, text)
    assert (failure.kind, failure.undone) == (Kind[kind], undone)
    assert failure.detail


def test_the_last_error_is_what_people_read() -> None:
    text = (
        "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:2379: "
        "Failed to connect to remote host: Connection refused"
    )
    detail = failure_of(CODE.UNAVAILABLE, text).detail
    assert detail == "Failed to connect to remote host: Connection refused"
    assert len(failure_of(CODE.UNKNOWN, "x" * 10_000).detail) == 300


def test_health_is_good_while_nobody_is_in_trouble() -> None:
    clock = ManualClock(wall=100)
    health = Health(clock, "not contacted yet")
    assert (health.status.available, health.status.since_s) == (False, 100)
    clock.advance(1)
    health.refuses("wrong password")
    assert (health.status.since_s, health.status.detail) == (100, "wrong password")
    health.works("calls", detail="a")
    assert (health.status.available, health.status.since_s) == (True, 101)
    clock.advance(1)
    health.refuses("permission denied")
    health.works("calls", detail="b")
    assert health.status.available
    assert (health.status.since_s, health.status.detail) == (101, "b")
    health.fails("watch 1", "gone")
    clock.advance(1)
    health.fails("watch 1", "still gone")
    health.works("calls", detail="c")
    assert not health.status.available
    assert (health.status.since_s, health.status.detail) == (102, "still gone")
    health.works("watch 1", "calls", detail="d")
    assert (health.status.available, health.status.since_s) == (True, 103)
    health.fails("watch 1", "gone")
    health.forget("watch 1")
    health.works("calls", detail="e")
    assert health.status.available
