"""The shell around a subscription: streams, fail-over, and the last good snapshot on disk.

For edges, cores and DNS. The node starts on what it has on disk, with no control plane in
sight; whatever happens afterwards, it keeps the last snapshot that it accepted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import grpc
import grpc.aio
import msgspec
from envoy.service.discovery.v3 import ads_pb2_grpc

from runtime import logs
from runtime.backoff import Backoff
from runtime.clock import Clock
from runtime.errors import TradewindError
from runtime.identity import Identity
from topology.snapshot import Snapshot
from topology.wire.channel import open_channel
from topology.wire.last_good import LastGood
from topology.wire.subscription import Origin, Subscription

log = logs.get("ads")

_EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # the stubs leave it out

OnSnapshot = Callable[[Snapshot], None]


class AdsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How patient a node is with its control plane."""

    connect_timeout_ms: int = 5_000  # TCP, TLS and the server's first sign of life
    first_response_timeout_ms: int = 60_000  # includes waiting to be admitted
    backoff_min_ms: int = 100
    backoff_max_ms: int = 10_000


class AdsStatus(msgspec.Struct, frozen=True):
    """Where the snapshot comes from and how fresh it is."""

    connected: bool  # a stream is up and has delivered
    endpoint: str  # of the stream, or of the last attempt; "" before the first
    revision: int  # of the snapshot held; 0: none
    since_s: float  # Unix time of the last change of `connected`
    stale: bool  # not connected, or the replica itself does not reach its store
    detail: str  # why it is not connected, or what the replica said
    replica: str = ""
    refused: str = ""  # why the last response was answered with a NACK; "" once one was accepted


class _Lost(Exception):
    """The stream is over; the text says why."""


class AdsClient:
    """Follows the control plane. Use within one event loop: `start()`, then `await close()`.

    `on_snapshot` is called on the loop, first with the snapshot from disk if there is one, then
    with each new one *before* it is acknowledged: a `TradewindError` raised by it is sent back
    as a NACK with its text, and the old snapshot stays. `endpoints` are tried in a random order.
    `last_good` is where the snapshot is kept; None: nowhere.
    """

    def __init__(
        self,
        node_id: str,
        endpoints: Sequence[str],
        identity: Identity,
        last_good: Path | None,
        on_snapshot: OnSnapshot,
        clock: Clock,
        rng: Random,
        settings: AdsSettings | None = None,
    ) -> None:
        self._settings = settings or AdsSettings()
        self._endpoints = rng.sample(list(endpoints), len(endpoints))
        self._identity = identity
        self._last_good = LastGood(last_good) if last_good is not None else None
        self._on_snapshot = on_snapshot
        self._clock = clock
        self._backoff = Backoff(
            self._settings.backoff_min_ms / 1e3, self._settings.backoff_max_ms / 1e3, rng.random
        )
        self._subscription = Subscription(node_id)
        self._status = AdsStatus(
            connected=False,
            endpoint="",
            revision=0,
            since_s=clock.wall(),
            stale=True,
            detail="not connected yet",
        )
        self._task: asyncio.Task[None] | None = None

    @property
    def snapshot(self) -> Snapshot:
        """The last snapshot accepted; an empty one of revision 0 before there was any."""
        return self._subscription.snapshot

    @property
    def status(self) -> AdsStatus:
        return self._status

    def start(self) -> None:
        """Take up the snapshot on disk, then begin to look for a control plane."""
        self._take_last_good()
        self._task = asyncio.create_task(self._follow_forever(), name="ads")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._last_good is not None:
            await self._last_good.close()

    def _take_last_good(self) -> None:
        snapshot = self._last_good.load() if self._last_good is not None else None
        if snapshot is None:
            return
        try:
            self._on_snapshot(snapshot)
        except TradewindError as error:
            log.error("the last good snapshot is ignored", reason=str(error))
            return
        self._subscription = Subscription(self._subscription.node_id, snapshot)
        self._update(revision=snapshot.revision)
        log.info("started from the last good snapshot", revision=snapshot.revision)

    async def _follow_forever(self) -> None:
        attempt = 0
        while self._endpoints:
            endpoint = self._endpoints[attempt % len(self._endpoints)]
            attempt += 1
            reason = await self._follow(endpoint)
            was_connected = self._status.connected
            self._update(connected=False, endpoint=endpoint, stale=True, detail=reason)
            delay_s = self._backoff.next_s()
            level = log.warning if was_connected else log.info
            level(
                "no control plane", endpoint=endpoint, reason=reason, retry_in_s=round(delay_s, 2)
            )
            await asyncio.sleep(delay_s)

    async def _follow(self, endpoint: str) -> str:
        """Follow one replica until the stream ends; returns why it did."""
        async with open_channel(endpoint, self._identity) as channel:
            call = ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel).DeltaAggregatedResources()
            reason = "the stream ended"
            try:
                await self._converse(call, endpoint)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.ABORTED:
                    # Another process speaks for this node. Two of them must not chase each
                    # other from the stream ten times a second.
                    self._backoff.exhaust()
                reason = f"{error.code().name}: {error.details()}"
            except asyncio.InvalidStateError:
                # grpc.aio: the call ended while a request was being written.
                reason = f"{(await call.code()).name}: {await call.details()}"
            except TimeoutError:
                reason = "no answer in time"
            except _Lost as lost:
                reason = str(lost)
            except Exception as error:  # whatever a callback does, go on following
                log.exception("following failed", endpoint=endpoint)
                reason = repr(error)
            finally:
                call.cancel()
            return reason

    async def _converse(self, call: Any, endpoint: str) -> None:
        async with asyncio.timeout(self._settings.connect_timeout_ms / 1e3):
            await call.write(self._subscription.open())
            await call.initial_metadata()
        first_response_s = self._settings.first_response_timeout_ms / 1e3
        while True:
            async with asyncio.timeout(
                None if self._subscription.synchronised else first_response_s
            ):
                response = await call.read()
            if response is _EOF:
                code, details = await call.code(), await call.details()
                raise _Lost(f"{code.name}: {details or 'the stream ended'}")
            received = self._subscription.receive(response, self._on_snapshot)
            self._note(endpoint, received.origin, received.error)
            if received.snapshot is not None and self._last_good is not None:
                self._last_good.keep(received.snapshot)
            await call.write(received.request)

    def _note(self, endpoint: str, origin: Origin, error: str) -> None:
        revision = self._subscription.snapshot.revision
        if error:
            log.error("a response was refused", endpoint=endpoint, reason=error, kept=revision)
            self._update(refused=error, replica=origin.replica)
            return
        self._backoff.reset()
        stale = origin.stale_since_s is not None
        self._update(
            connected=True,
            endpoint=endpoint,
            revision=revision,
            stale=stale,
            detail="the control plane does not reach its store" if stale else "",
            replica=origin.replica,
            refused="",
        )

    def _update(self, **changes: object) -> None:
        before = self._status
        after = msgspec.structs.replace(before, **changes)
        if after.connected != before.connected:
            after = msgspec.structs.replace(after, since_s=self._clock.wall())
        self._status = after
