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
from runtime.atomic_file import CheckedFile
from runtime.backoff import Backoff
from runtime.clock import Clock
from runtime.errors import TradewindError
from runtime.identity import Identity
from topology.directive import Directive
from topology.snapshot import Snapshot
from topology.wire import codec
from topology.wire.channel import open_channel
from topology.wire.directive_subscription import DirectiveSubscription
from topology.wire.last_good import LastGood
from topology.wire.subscription import Origin, Subscription

log = logs.get("ads")

_VOUCH_EVERY_S = 5.0

_EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # the stubs leave it out

OnSnapshot = Callable[[Snapshot], None]
OnDirective = Callable[[Directive], None]


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
    # Until when a replica that reaches its store vouched for what is held, give or take the 15 s
    # in which a dead connection is noticed: Unix time; 0: never. It survives restarts, on disk.
    confirmed_s: float = 0.0
    confirmed_at: float = float("-inf")  # the same by the monotonic clock, `Clock.now()`


class _Lost(Exception):
    """The stream is over; the text says why."""


class AdsClient:
    """Follows the control plane. Use within one event loop: `start()`, then `await close()`.

    `on_snapshot` is called on the loop, first with the snapshot from disk if there is one, then
    with each new one *before* it is acknowledged: a `TradewindError` raised by it is sent back
    as a NACK with its text, and the old snapshot stays. `endpoints` are tried in a random order.
    `last_good` is where the snapshot is kept, with the directive in a file beside it; None:
    nowhere. `on_directive` is called like `on_snapshot`, and after it; None: no directive is asked
    for.
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
        on_directive: OnDirective | None = None,
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
        self._on_directive = on_directive
        self._directed = DirectiveSubscription(node_id)
        self._directive_file: CheckedFile | None = None
        if last_good is not None and on_directive is not None:
            beside = last_good.with_name(f"{last_good.name}.directive")
            self._directive_file = CheckedFile(beside, "directive")
        self._status = AdsStatus(
            connected=False,
            endpoint="",
            revision=0,
            since_s=clock.wall(),
            stale=True,
            detail="not connected yet",
        )
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def snapshot(self) -> Snapshot:
        """The last snapshot accepted; an empty one of revision 0 before there was any."""
        return self._subscription.snapshot

    @property
    def directive(self) -> Directive:
        """The last directive accepted; `topology.directive.NONE` before there was any."""
        return self._directed.directive

    @property
    def status(self) -> AdsStatus:
        self._confirm()
        return self._status

    @property
    def disk_failures(self) -> int:
        """How many writes of the snapshot or the directive to disk failed."""
        files = (self._last_good, self._directive_file)
        return sum(file.failures for file in files if file is not None)

    def start(self) -> None:
        """Take up snapshot and directive on disk, then begin to look for a control plane."""
        self._take_last_good()
        self._take_kept_directive()
        self._tasks = [asyncio.create_task(self._follow_forever(), name="ads")]
        if self._last_good is not None:
            vouching = self._vouch_forever(self._last_good)
            self._tasks.append(asyncio.create_task(vouching, name="ads-vouch"))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._last_good is not None:
            await self._last_good.close()
        if self._directive_file is not None:
            await self._directive_file.close()

    def _take_last_good(self) -> None:
        snapshot = self._last_good.load() if self._last_good is not None else None
        if snapshot is None or self._last_good is None:
            return
        try:
            self._on_snapshot(snapshot)
        except TradewindError as error:
            log.error("the last good snapshot is ignored", reason=str(error))
            return
        self._subscription = Subscription(self._subscription.node_id, snapshot)
        vouched_s = self._last_good.vouched_s
        age_s = max(0.0, self._clock.wall() - vouched_s)
        self._update(
            revision=snapshot.revision,
            confirmed_s=vouched_s,
            confirmed_at=self._clock.now() - age_s,
        )
        log.info("started from the last good snapshot", revision=snapshot.revision)

    def _take_kept_directive(self) -> None:
        data = self._directive_file.load() if self._directive_file is not None else None
        if data is None:
            return
        try:
            self._directed.restore(data, "the directive on disk", self._on_directive)
        except TradewindError as error:
            log.error("the directive on disk is ignored", reason=str(error))

    async def _follow_forever(self) -> None:
        attempt = 0
        while self._endpoints:
            endpoint = self._endpoints[attempt % len(self._endpoints)]
            attempt += 1
            try:
                reason = await self._follow(endpoint)
            except Exception as error:  # whatever a callback or a channel does, go on following
                log.exception("following failed", endpoint=endpoint)
                reason = repr(error)
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
            finally:
                call.cancel()
            return reason

    async def _converse(self, call: Any, endpoint: str) -> None:
        async with asyncio.timeout(self._settings.connect_timeout_ms / 1e3):
            await call.write(self._subscription.open())
            await call.initial_metadata()
        first_response_s = self._settings.first_response_timeout_ms / 1e3
        asked = self._on_directive is None
        while True:
            async with asyncio.timeout(
                None if self._subscription.synchronised else first_response_s
            ):
                response = await call.read()
            if response is _EOF:
                code, details = await call.code(), await call.details()
                raise _Lost(f"{code.name}: {details or 'the stream ended'}")
            if response.type_url == codec.DIRECTIVE_TYPE_URL and self._on_directive is not None:
                await call.write(self._take_directive(response, endpoint))
                continue
            await call.write(self._take_snapshot(response, endpoint))
            if not asked:
                asked = True
                await call.write(self._directed.open())

    def _take_snapshot(self, response: Any, endpoint: str) -> Any:
        received = self._subscription.receive(response, self._on_snapshot)
        self._note(endpoint, received.origin, received.error)
        if received.snapshot is not None and self._last_good is not None:
            self._last_good.keep(received.snapshot)
        return received.request

    def _take_directive(self, response: Any, endpoint: str) -> Any:
        received = self._directed.receive(response, self._on_directive)
        if received.error:
            log.warning("a directive was refused", endpoint=endpoint, reason=received.error)
        if received.directive is not None and self._directive_file is not None:
            self._directive_file.keep(self._directed.encode())
        return received.request

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

    def _confirm(self) -> None:
        """As long as the stream is up, the replica's last word holds."""
        if self._status.connected and not self._status.stale:
            self._status = msgspec.structs.replace(
                self._status, confirmed_s=self._clock.wall(), confirmed_at=self._clock.now()
            )

    async def _vouch_forever(self, last_good: LastGood) -> None:
        """Keep on disk until when the snapshot was vouched for, for the next start."""
        while True:
            status = self.status
            if status.connected and not status.stale:
                await last_good.vouch(self.snapshot, status.confirmed_s)
            await asyncio.sleep(_VOUCH_EVERY_S)

    def _update(self, **changes: object) -> None:
        self._confirm()
        before = self._status
        after = msgspec.structs.replace(before, **changes)
        if after.connected != before.connected:
            after = msgspec.structs.replace(after, since_s=self._clock.wall())
        self._status = after
