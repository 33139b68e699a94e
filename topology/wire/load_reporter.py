"""An edge's load reports (LRS): once a second, what was counted since.

Nothing of the edge waits for it. While no replica takes reports, what was counted is thrown
away, so that the first report of a new stream is about the present.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from random import Random
from typing import Any

import grpc
import grpc.aio
import msgspec
from envoy.service.load_stats.v3 import lrs_pb2, lrs_pb2_grpc

from runtime import logs
from runtime.backoff import Backoff
from runtime.clock import Clock
from runtime.identity import Identity
from runtime.metrics import Sample
from topology.load import LoadCounts, encode
from topology.wire.channel import open_channel

log = logs.get("load-reports")

_EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # the stubs leave it out

INTERVAL_MIN_S, INTERVAL_MAX_S = 0.1, 60.0  # whatever a replica asks for


class LoadReporterSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How patient an edge is with who takes its reports."""

    connect_timeout_ms: int = 5_000  # until the replica has said how often it wants them
    write_timeout_ms: int = 5_000
    backoff_min_ms: int = 200
    backoff_max_ms: int = 10_000


class _Lost(Exception):
    """The stream is over; the text says why."""


class LoadReporter:
    """Use within one event loop: `start()`, then `await close()`.

    `asked`: tenant with a limit -> requests that asked, ever; it is read once a report.
    `identity` is asked for each connection.
    """

    def __init__(
        self,
        node_id: str,
        endpoints: Sequence[str],
        identity: Callable[[], Identity],
        counts: LoadCounts,
        asked: Callable[[], Mapping[str, int]],
        clock: Clock,
        rng: Random,
        settings: LoadReporterSettings | None = None,
    ) -> None:
        self._node_id = node_id
        self._endpoints = rng.sample(list(endpoints), len(endpoints))
        self._identity = identity
        self._counts = counts
        self._asked = asked
        self._asked_before: dict[str, int] = {}
        self._clock = clock
        self._settings = settings or LoadReporterSettings()
        self._backoff = Backoff(
            self._settings.backoff_min_ms / 1e3, self._settings.backoff_max_ms / 1e3, rng.random
        )
        self._task: asyncio.Task[None] | None = None
        self.connected = False
        self.detail = "not connected yet"
        self.sent = 0  # reports

    def start(self) -> None:
        self._task = asyncio.create_task(self._report_forever(), name="load-reports")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def samples(self) -> Iterable[Sample]:
        name = "tradewind_edge_load_reports_"
        yield Sample(name + "taken", "A replica takes its load reports.", self.connected)
        yield Sample(name + "sent_total", "Load reports sent.", self.sent)

    async def _report_forever(self) -> None:
        attempt = 0
        while self._endpoints:
            endpoint = self._endpoints[attempt % len(self._endpoints)]
            attempt += 1
            try:
                self.detail = await self._report_to(endpoint)
            except Exception as error:  # whatever comes, go on reporting
                log.exception("reporting failed", endpoint=endpoint)
                self.detail = repr(error)
            was_connected, self.connected = self.connected, False
            delay_s = self._backoff.next_s()
            level = log.warning if was_connected else log.info
            level(
                "no load reports",
                endpoint=endpoint,
                reason=self.detail,
                retry_in_s=round(delay_s, 2),
            )
            await asyncio.sleep(delay_s)
            self._counts.take()

    async def _report_to(self, endpoint: str) -> str:
        """Report to one replica until the stream ends; returns why it did."""
        async with open_channel(endpoint, self._identity()) as channel:
            call = lrs_pb2_grpc.LoadReportingServiceStub(channel).StreamLoadStats()
            reading: asyncio.Task[Any] | None = None
            try:
                interval_s = await self._begin(call)
                # Reading all the while is how the end of the stream, and another interval, are
                # noticed.
                reading = asyncio.create_task(call.read())
                taken_s = self._clock.now()
                while True:
                    wait_s = max(0.0, taken_s + interval_s - self._clock.now())
                    done, _ = await asyncio.wait({reading}, timeout=wait_s)
                    if done:
                        interval_s = _interval(await self._told(call, reading.result()))
                        reading = asyncio.create_task(call.read())
                        continue
                    now_s = self._clock.now()
                    await self._send(call, now_s - taken_s)
                    taken_s = now_s
            except grpc.aio.AioRpcError as error:
                return f"{error.code().name}: {error.details()}"
            except asyncio.InvalidStateError:
                # grpc.aio: the call ended while a report was being written.
                return f"{(await call.code()).name}: {await call.details()}"
            except TimeoutError:
                return "no answer in time"
            except _Lost as lost:
                return str(lost)
            finally:
                if reading is not None:
                    reading.cancel()
                    await asyncio.gather(reading, return_exceptions=True)
                call.cancel()

    async def _begin(self, call: Any) -> float:
        async with asyncio.timeout(self._settings.connect_timeout_ms / 1e3):
            request = lrs_pb2.LoadStatsRequest()
            request.node.id = self._node_id
            request.node.user_agent_name = "tradewind"
            await call.write(request)
            response = await self._told(call, await call.read())
        self._counts.take()
        self._asked_before = dict(self._asked())
        self._backoff.reset()
        self.connected, self.detail = True, ""
        return _interval(response)

    @staticmethod
    async def _told(call: Any, response: Any) -> Any:
        if response is _EOF:
            code, details = await call.code(), await call.details()
            raise _Lost(f"{code.name}: {details or 'the stream ended'}")
        return response

    async def _send(self, call: Any, interval_s: float) -> None:
        request = lrs_pb2.LoadStatsRequest()
        request.cluster_stats.extend(encode(self._counts.take(), self._asked_since(), interval_s))
        async with asyncio.timeout(self._settings.write_timeout_ms / 1e3):
            await call.write(request)
        self.sent += 1

    def _asked_since(self) -> dict[str, int]:
        now = dict(self._asked())
        # A count that fell was begun anew.
        since = {t: n - self._asked_before.get(t, 0) for t, n in now.items()}
        self._asked_before = now
        return {tenant: n if n >= 0 else now[tenant] for tenant, n in since.items() if n}


def _interval(response: Any) -> float:
    asked_s = response.load_reporting_interval.ToMilliseconds() / 1e3
    return float(min(max(asked_s, INTERVAL_MIN_S), INTERVAL_MAX_S))
