"""Load reports over a real gRPC server with mutual TLS: the edge's client, and bad ones."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from time import perf_counter
from typing import Any

import grpc
import grpc.aio
import pytest
from envoy.service.load_stats.v3 import lrs_pb2, lrs_pb2_grpc

from control_plane.admission import Shares
from control_plane.directives.observed import EdgeReport
from control_plane.director import load_reports
from control_plane.director.load_reports import LoadReports
from control_plane.director.reported import BadReport
from runtime.clock import ManualClock, SystemClock
from runtime.identity import Identity
from tests.control_plane.mesh import Mesh, until
from topology.load import LoadCounts, encode
from topology.wire.channel import open_channel, server_credentials, server_options
from topology.wire.load_reporter import LoadReporter, LoadReporterSettings

ALL = "standard:dubai|frankfurt"
QUICK = LoadReporterSettings(backoff_min_ms=20, backoff_max_ms=100)


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Mesh:
    return Mesh(Path(tmp_path_factory.mktemp("mesh")))


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_reports, "INTERVAL_S", 0.15)


class Taker:
    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.clock = ManualClock(wall=1000.0)
        self.reports = LoadReports(self.clock)
        self.port = 0
        self._server: Any = None

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = grpc.aio.server(options=server_options())
        self.reports.add_to(self._server)
        credentials = server_credentials(self.mesh.identity("control/cp-1"))
        self.port = self._server.add_secure_port(f"127.0.0.1:{self.port}", credentials)
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(0)


@pytest.fixture
async def taker(mesh: Mesh) -> AsyncIterator[Taker]:
    taker = Taker(mesh)
    await taker.start()
    yield taker
    await taker.stop()


@asynccontextmanager
async def reporting(
    taker: Taker, counts: LoadCounts, asked: dict[str, int] | None = None, node: str = "edge/tokyo"
) -> AsyncIterator[LoadReporter]:
    identity = taker.mesh.identity("edge/tokyo")
    endpoints = [taker.endpoint]
    client = LoadReporter(
        node,
        endpoints,
        lambda: identity,
        counts,
        lambda: asked or {},
        SystemClock(),
        Random(1),
        QUICK,
    )
    client.start()
    try:
        yield client
    finally:
        await client.close()


def served(
    counts: LoadCounts, region: str, requests: int, *, failed: int = 0, tokens: int = 50
) -> None:
    at = counts.at(ALL, region)
    at.issued += requests + failed
    at.ok += requests
    at.failed += failed
    at.tokens += requests * tokens
    at.first_tokens += requests
    at.first_token_s += 0.2 * requests


async def test_what_an_edge_counts_is_what_the_director_sees(taker: Taker) -> None:
    counts, asked = LoadCounts(), {"acme": 100}
    async with reporting(taker, counts, asked) as client:
        await until(lambda: client.connected)
        served(counts, "dubai", 8, failed=2)
        served(counts, "frankfurt", 2)
        counts.of(ALL).lost += 1
        asked["acme"] += 5
        await until(lambda: ALL in taker.reports.edges().get("edge/tokyo", _NOBODY).demand)
        report = taker.reports.edges()["edge/tokyo"]
    assert (report.edge, report.at_s) == ("tokyo", 1000.0)
    load = report.demand[ALL]
    # Ten were served and one was lost; two attempts failed on the way.
    rate = load.requests_per_s / 11
    assert rate > 0
    assert load.errors_per_s == pytest.approx(rate)
    assert load.tokens_per_s == pytest.approx(500 * rate)
    assert load.regions == pytest.approx({"dubai": 400 * rate, "frankfurt": 100 * rate})
    dubai = report.regions["dubai"]
    assert (dubai.requests_per_s, dubai.errors_per_s) == pytest.approx((10 * rate, 2 * rate))
    assert dubai.first_token_ms == pytest.approx(200.0)
    assert report.tenants == pytest.approx({"acme": 5 * rate})


async def test_what_fell_silent_is_forgotten(taker: Taker) -> None:
    counts = LoadCounts()
    async with reporting(taker, counts, node="edge/tokyo/1") as client:
        await until(lambda: client.connected)
        served(counts, "dubai", 5)
        await until(lambda: "edge/tokyo/1" in taker.reports.edges())
    taker.clock.advance(4.0)
    assert taker.reports.edges()
    taker.clock.advance(2.0)
    assert taker.reports.edges() == {}


async def test_rates_are_smoothed_and_fade(taker: Taker) -> None:
    reports = taker.reports
    for _ in range(40):
        counts = LoadCounts()
        served(counts, "dubai", 10)
        reports._take("edge/a", "a", _request(counts))
        taker.clock.advance(1.0)
    steady = reports.edges()["edge/a"].demand[ALL].requests_per_s
    assert steady == pytest.approx(10.0)
    counts = LoadCounts()
    served(counts, "dubai", 100)
    reports._take("edge/a", "a", _request(counts))
    assert 20 < reports.edges()["edge/a"].demand[ALL].requests_per_s < 50
    for _ in range(60):
        reports._take("edge/a", "a", lrs_pb2.LoadStatsRequest())
        taker.clock.advance(1.0)
    assert reports.edges()["edge/a"].demand == {}
    assert reports.edges()["edge/a"].regions == {}


async def test_a_replica_that_comes_back_is_told_of_the_present(taker: Taker) -> None:
    counts = LoadCounts()
    async with reporting(taker, counts) as client:
        await until(lambda: client.connected)
        await taker.stop()
        await until(lambda: not client.connected)
        served(counts, "dubai", 1_000_000)
        await until(lambda: not counts.classes)  # thrown away
        await taker.start()
        await until(lambda: client.connected)
        served(counts, "dubai", 3)
        await until(lambda: ALL in taker.reports.edges().get("edge/tokyo", _NOBODY).demand)
        assert taker.reports.edges()["edge/tokyo"].demand[ALL].requests_per_s < 100


async def test_reporting_goes_on_whatever_went_wrong(taker: Taker) -> None:
    attempts = iter([RuntimeError("a mistake of ours"), taker.mesh.identity("edge/tokyo")])

    def next_identity() -> Identity:
        found = next(attempts)
        if isinstance(found, Exception):
            raise found
        return found

    client = LoadReporter(
        "edge/tokyo", [taker.endpoint], next_identity, LoadCounts(), dict,
        SystemClock(), Random(1), QUICK,
    )  # fmt: skip
    client.start()
    await until(lambda: client.connected)
    await client.close()


async def test_a_proxy_counts_under_its_own_name_and_for_no_edge(taker: Taker) -> None:
    async with _stream(taker, "proxy/tokyo") as call:
        first = lrs_pb2.LoadStatsRequest()
        first.node.id = "sidecar~10.0.0.7"
        await call.write(first)
        await call.read()
        await call.write(_request(_some()))
        await until(lambda: taker.reports.edges())
        (report,) = taker.reports.edges().values()
    assert (report.node, report.edge, report.regions) == ("proxy/tokyo/sidecar~10.0.0.7", "", {})
    assert report.demand


def _bad(change: Any) -> Any:
    request = _request(_some())
    change(request.cluster_stats[0])
    return request


@pytest.mark.parametrize(
    ("request_", "word"),
    [
        (lambda: _bad(lambda s: setattr(s, "cluster_name", "")), "cluster_name"),
        (lambda: _bad(lambda s: setattr(s, "cluster_name", "x" * 5000)), "cluster_name"),
        (lambda: _bad(lambda s: s.load_report_interval.FromMilliseconds(-5)), "interval"),
        (lambda: _bad(lambda s: s.load_report_interval.FromSeconds(10**9)), "interval"),
        (lambda: _bad(lambda s: setattr(s, "total_dropped_requests", 2**63)), "count"),
        (
            lambda: _bad(lambda s: [s.upstream_locality_stats.add() for _ in range(300)]),
            "localities",
        ),
        (lambda: _bad(lambda s: _metric(s, float("nan"))), "count of nan"),
        (lambda: _bad(lambda s: _metric(s, float("-inf"))), "count of -inf"),
        (lambda: _bad(lambda s: _metric(s, -1.0)), "count of -1"),
        (lambda: _many(5000), "clusters"),
    ],
)
async def test_a_report_that_makes_no_sense_ends_the_stream_and_counts_not(
    taker: Taker, request_: Any, word: str
) -> None:
    async with _stream(taker, "edge/tokyo") as call:
        await _begin(call, "edge/tokyo")
        await call.write(request_())
        code, details = await _end(call)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert word in details
    assert all(not report.demand for report in taker.reports.edges().values())


@pytest.mark.parametrize(
    ("principal", "node", "code"),
    [
        ("core/dubai", "core/dubai", grpc.StatusCode.PERMISSION_DENIED),
        ("operator/ada", "operator/ada", grpc.StatusCode.PERMISSION_DENIED),
        ("edge/tokyo", "edge/london", grpc.StatusCode.PERMISSION_DENIED),
        ("edge/tokyo", "", grpc.StatusCode.PERMISSION_DENIED),
    ],
)
async def test_who_may_not_report(
    taker: Taker, principal: str, node: str, code: grpc.StatusCode
) -> None:
    async with _stream(taker, principal) as call:
        request = _request(_some())
        request.node.id = node
        await call.write(request)
        assert (await _end(call))[0] is code
    assert taker.reports.edges() == {}


async def test_reports_in_haste_are_not_borne(taker: Taker) -> None:
    async with _stream(taker, "edge/tokyo") as call:
        await _begin(call, "edge/tokyo")
        for _ in range(load_reports.HASTE**2 + 1):
            await call.write(_request(_some()))
        assert (await _end(call))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_names_that_change_with_every_report_take_bounded_room(taker: Taker) -> None:
    bound = load_reports.HELD_MAX
    taker.reports._take("edge/a", "a", _named(range(bound // 2)))
    taker.reports._take("edge/a", "a", _named(range(bound // 2, bound)))
    with pytest.raises(BadReport, match="names"):
        taker.reports._take("edge/a", "a", _named(range(bound, bound + 1)))
    assert len(taker.reports.edges()["edge/a"].demand) == bound


async def test_one_certificate_takes_a_bounded_number_of_streams(
    taker: Taker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(taker.reports, "_shares", Shares(2, 1000.0))
    async with (
        _stream(taker, "edge/tokyo") as one,
        _stream(taker, "edge/tokyo") as two,
        _stream(taker, "edge/tokyo") as three,
    ):
        await _begin(one, "edge/tokyo/1")
        await _begin(two, "edge/tokyo/2")
        first = lrs_pb2.LoadStatsRequest()
        first.node.id = "edge/tokyo/3"
        await three.write(first)
        assert (await _end(three))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
        two.cancel()
        await until(lambda: len(taker.reports._streams) == 1)
        taker.clock.advance(1.0)
        async with _stream(taker, "edge/tokyo") as four:
            await _begin(four, "edge/tokyo/4")


async def test_taking_a_report_does_not_look_at_all_nodes(taker: Taker) -> None:
    """With ten thousand nodes that report each second it would take the whole second."""
    reports, nodes = taker.reports, 2000
    looked = 0

    class Counting(dict[str, Any]):
        def items(self) -> Any:
            nonlocal looked
            looked += len(self)
            return super().items()

    reports._nodes = Counting()
    for second in range(10):
        for n in range(nodes):
            reports._take(f"edge/e{n}", f"e{n}", lrs_pb2.LoadStatsRequest())
        taker.clock.advance(1.0)
        assert second > 1 or looked == 0
    assert looked <= 2 * nodes


async def test_the_newer_stream_of_a_node_counts(taker: Taker) -> None:
    async with _stream(taker, "edge/tokyo") as old, _stream(taker, "edge/tokyo") as new:
        await _begin(old, "edge/tokyo")
        await _begin(new, "edge/tokyo")
        await old.write(_request(_some()))
        assert (await _end(old))[0] is grpc.StatusCode.ABORTED
        await new.write(_request(_some()))
        await until(lambda: taker.reports.edges())


def test_counting_costs_a_request_less_than_a_microsecond_or_so() -> None:
    """What `Attempts` does for one request that goes well, measured. The bound leaves room for a
    machine that is busy with something else."""
    counts, best, times = LoadCounts(), float("inf"), 20_000
    for _ in range(5):
        began = perf_counter()
        for _ in range(times):
            counts.at(ALL, "dubai").issued += 1
            at = counts.at(ALL, "dubai")
            at.first_tokens += 1
            at.first_token_s += 0.1
            at = counts.at(ALL, "dubai")
            at.ok += 1
            at.tokens += 50
        best = min(best, (perf_counter() - began) / times)
    assert best < 3e-6, f"{best * 1e6:.2f} us"


_NOBODY = EdgeReport("", "", 0.0)


async def _end(call: Any) -> tuple[grpc.StatusCode, str]:
    """How the server ended a stream."""
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        while True:
            assert await call.read() is not grpc.aio.EOF
    return ended.value.code(), ended.value.details() or ""


def _some() -> LoadCounts:
    counts = LoadCounts()
    served(counts, "dubai", 10)
    return counts


def _request(counts: LoadCounts) -> Any:
    request = lrs_pb2.LoadStatsRequest()
    request.cluster_stats.extend(encode(counts.take(), {}, 1.0))
    return request


def _many(clusters: int) -> Any:
    request = lrs_pb2.LoadStatsRequest()
    for n in range(clusters):
        request.cluster_stats.add(cluster_name=f"c{n}").load_report_interval.FromSeconds(1)
    return request


def _named(numbers: range) -> Any:
    request = lrs_pb2.LoadStatsRequest()
    for n in numbers:
        stats = request.cluster_stats.add(cluster_name=f"c{n}", total_dropped_requests=10**6)
        stats.load_report_interval.FromSeconds(1)
    return request


def _metric(stats: Any, value: float) -> None:
    at = stats.upstream_locality_stats[0]
    at.load_metric_stats.add(
        metric_name="tokens", num_requests_finished_with_metric=1, total_metric_value=value
    )


@asynccontextmanager
async def _stream(taker: Taker, principal: str) -> AsyncIterator[Any]:
    async with open_channel(taker.endpoint, taker.mesh.identity(principal)) as channel:
        call = lrs_pb2_grpc.LoadReportingServiceStub(channel).StreamLoadStats()
        yield call
        call.cancel()


async def _begin(call: Any, node: str) -> None:
    first = lrs_pb2.LoadStatsRequest()
    first.node.id = node
    await call.write(first)
    response = await call.read()
    assert response.send_all_clusters
    assert response.load_reporting_interval.ToMilliseconds() == 150
