"""Two connections over a simulated network: seeded loss, reordering and duplication, no clock."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from functools import cache
from random import Random

from aioquic.quic import events

from runtime.identity import Identity
from tests.overlay.certificates import Authority
from topology.overlay.connection import OverlayConnection, configure
from topology.overlay.trust import Trust

CLIENT, SERVER = ("client", 1), ("server", 2)


@cache
def authority() -> Authority:
    return Authority()


@cache
def identity(role: str) -> Identity:
    return authority().issue(role, "x")


def connection(
    role: str, trusted: tuple[str, ...], *, window: int = 2**18, streams: int = 256,
    original: bytes | None = None,
) -> OverlayConnection:  # fmt: skip
    is_client = original is None
    configuration = configure(
        identity(role),
        is_client=is_client,
        idle_timeout_ms=60_000,
        max_datagram_bytes=1350,
        max_stream_data_bytes=window,
    )
    rest = {} if is_client else {"original_destination_connection_id": original}
    return OverlayConnection(
        configuration=configuration,
        trust=Trust(authority().pem, trusted),
        max_streams=0 if is_client else streams,
        **rest,
    )


class Pair:
    """`on_client` and `on_server` get each event; `loss` is a share of the datagrams.

    With `bytes_per_s` each way is a bottleneck with a queue of `queue_bytes` before it.
    """

    def __init__(
        self, seed: int = 0, loss: float = 0.0, jitter_s: float = 0.0, duplicates: float = 0.0,
        *, delay_s: float = 0.01, bytes_per_s: float = 0.0, queue_bytes: int = 50_000,
        window: int = 2**18, streams: int = 256,
    ) -> None:  # fmt: skip
        self.now = 100.0
        self.client = connection("edge", ("core",), window=window)
        self.server: OverlayConnection = connection(
            "core", ("edge",), window=window, streams=streams,
            original=self.client.original_destination_connection_id,
        )  # fmt: skip
        self.on_client: Callable[[events.QuicEvent], None] = lambda event: None
        self.on_server: Callable[[events.QuicEvent], None] = lambda event: None
        self.datagrams = {"client": 0, "server": 0}
        self._random = Random(seed)
        self._loss, self._jitter_s, self._duplicates = loss, jitter_s, duplicates
        self._delay_s = delay_s
        self._bytes_per_s, self._queue_bytes = bytes_per_s, queue_bytes
        self._free_at = {"client": 0.0, "server": 0.0}  # when the bottleneck is idle again
        self.overflowed = 0
        self._flying: list[tuple[float, int, str, bytes]] = []
        self._sequence = 0
        self.client.connect(SERVER, self.now)

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Let the time pass until `until` holds; whether it does."""
        end = self.now + seconds
        while True:
            self._step()
            if until():
                return True
            times = [t for t in (self.client.get_timer(), self.server.get_timer()) if t]
            if self._flying:
                times.append(self._flying[0][0])
            if not times or min(times) > end:
                self.now = end
                return False
            # A little later than the timer: aioquic's sums of floats round either way.
            self.now = max(self.now, min(times)) + 1e-6

    def connect(self) -> Pair:
        assert self.run(30, lambda: self.client.confirmed and self.server.confirmed)
        return self

    def _step(self) -> None:
        while self._flying and self._flying[0][0] <= self.now:
            _, _, to, data = heapq.heappop(self._flying)
            if to == "server":
                self.server.receive_datagram(data, CLIENT, self.now)
            else:
                self.client.receive_datagram(data, SERVER, self.now)
        for end, to, handler in (
            (self.client, "server", self.on_client),
            (self.server, "client", self.on_server),
        ):
            timer = end.get_timer()
            if timer is not None and timer <= self.now:
                end.handle_timer(self.now)
            while (event := end.next_event()) is not None:
                handler(event)
            if end is self.client or end._network_paths:
                for data, _ in end.datagrams_to_send(self.now):
                    self._send(to, data)

    def _send(self, to: str, data: bytes) -> None:
        self.datagrams[to] += 1
        waited = 0.0
        if self._bytes_per_s:
            begin = max(self.now, self._free_at[to])
            if (begin - self.now) * self._bytes_per_s > self._queue_bytes:
                self.overflowed += 1
                return
            self._free_at[to] = begin + len(data) / self._bytes_per_s
            waited = self._free_at[to] - self.now
        copies = 1 + (self._random.random() < self._duplicates)
        for _ in range(copies):
            if self._random.random() >= self._loss:
                at = self.now + waited + self._delay_s + self._random.random() * self._jitter_s
                self._sequence += 1
                heapq.heappush(self._flying, (at, self._sequence, to, data))
