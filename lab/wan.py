"""The WAN emulator: UDP relays that put distance, loss and cuts between loopback addresses.

One process carries all links. Whoever sends to a link's `listen` address reaches its `target`
half a round trip later, and so does what comes back. Run it with
`python -m lab.wan --settings FILE`; FILE is YAML with a list of `links`.

What a packet suffers is decided by `Impairment`, which is pure and seeded; what is under way
waits in one `DelayLine`, so that thousands of packets need one timer.
"""

from __future__ import annotations

import asyncio
import heapq
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Annotated

import msgspec
import typer
import uvloop
from msgspec import Meta, Struct

from lab.errors import LabError
from runtime import logs, settings
from runtime.clock import Clock, SystemClock
from runtime.errors import TradewindError
from runtime.shutdown import Shutdown
from topology.fields import HostPort

log = logs.get("wan")
CLOCK = SystemClock()  # event loops count in milliseconds, which is too coarse for delays

MAX_PEERS = 256  # clients of one link that are told apart; the one that was silent longest goes
PEER_IDLE_S = 60.0  # a client silent for so long is forgotten when a new one comes
MAX_UNDER_WAY = 8192  # packets of one link and direction; more are dropped, as a full buffer does
_BATCH = 64  # datagrams read in one go, so that no link starves the others
_MAX_DATAGRAM = 65_535
_SOCKET_BUFFER_BYTES = 4 * 2**20
_TIMER_SLACK_S = 0.0005  # event loops round timers to a millisecond


class WanLink(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One link. Delay is the same both ways; each packet is lost with probability `loss`."""

    name: str
    listen: HostPort
    target: HostPort
    rtt_ms: Annotated[float, Meta(ge=0)] = 0.0
    jitter_ms: Annotated[float, Meta(ge=0)] = 0.0  # added to each way, uniformly from 0 to this
    loss: Annotated[float, Meta(ge=0, le=1)] = 0.0
    cut: bool = False


class WanSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """What `python -m lab.wan` reads. The same seed loses the same packets."""

    links: Annotated[tuple[WanLink, ...], Meta(min_length=1)]
    seed: int = 1


class Impairment:
    """Decides when, and whether, each packet of one direction arrives."""

    def __init__(self, link: WanLink, rng: Random) -> None:
        self._link = link
        self._rng = rng
        self._last = 0.0

    def use(self, link: WanLink) -> None:
        """Take new figures for packets from now on."""
        self._link = link

    def arrival(self, now: float) -> float | None:
        """When a packet sent at `now` (seconds) arrives; None when it is lost. Packets stay in
        order: jitter delays those behind, as a queue does."""
        link = self._link
        if link.cut or (link.loss and self._rng.random() < link.loss):
            return None
        jitter = self._rng.random() * link.jitter_ms if link.jitter_ms else 0.0
        self._last = max(self._last, now + (link.rtt_ms / 2 + jitter) / 1000)
        return self._last


class DelayLine:
    """Calls each action at its time, soonest first, with one timer for all."""

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Clock = CLOCK) -> None:
        self._loop = loop
        self._clock = clock
        self._heap: list[tuple[float, int, Callable[[], object]]] = []
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None
        self._at = 0.0

    def add(self, due: float, action: Callable[[], object]) -> None:
        self._count += 1
        heapq.heappush(self._heap, (due, self._count, action))
        if self._timer is None or due < self._at:
            self._arm(due)

    def _arm(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._at = due
        self._timer = self._loop.call_later(max(0.0, due - self._clock.now()), self._fire)

    def _fire(self) -> None:
        self._timer = None
        limit = self._clock.now() + _TIMER_SLACK_S
        heap = self._heap
        while heap and heap[0][0] <= limit:
            heapq.heappop(heap)[2]()
        if heap:
            self._arm(heap[0][0])

    def close(self) -> None:
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()


class Direction:
    """One way of one link: what is under way, and what became of it."""

    def __init__(self, link: WanLink, line: DelayLine, rng: Random) -> None:
        self.impairment = Impairment(link, rng)
        self._line = line
        self._under_way = 0
        self.delivered = 0
        self.lost = 0
        self.overflowed = 0
        self.refused = 0  # nobody listened at the other end

    def carry(self, now: float, deliver: Callable[[], object]) -> None:
        """Let one packet suffer what the link does to it."""
        if self._under_way >= MAX_UNDER_WAY:
            self.overflowed += 1
            return
        due = self.impairment.arrival(now)
        if due is None:
            self.lost += 1
            return
        self._under_way += 1
        self._line.add(due, lambda: self._arrive(deliver))

    def _arrive(self, deliver: Callable[[], object]) -> None:
        self._under_way -= 1
        try:
            deliver()
            self.delivered += 1
        except BlockingIOError:
            self.overflowed += 1
        except OSError:
            self.refused += 1


class _Peer(Struct):
    """A client of a link: the socket that speaks to the target for it, and when it last sent."""

    upstream: socket.socket
    heard_s: float = 0.0


class Relay:
    """One link's sockets: one that clients send to, and one towards the target per client."""

    def __init__(
        self, link: WanLink, loop: asyncio.AbstractEventLoop, line: DelayLine, rng: Random
    ) -> None:
        self.link = link
        self.out = Direction(link, line, rng)
        self.back = Direction(link, line, rng)
        self._loop = loop
        self._target = _address(link.target)
        self._peers: dict[tuple[str, int], _Peer] = {}  # silent longest first
        self._listening = _udp_socket()
        try:
            self._listening.bind(_address(link.listen))
        except OSError as error:
            self._listening.close()
            raise LabError(f"link {link.name}: cannot listen on {link.listen}: {error}") from error
        loop.add_reader(self._listening, self._from_clients)

    def set(self, **figures: object) -> None:
        """Change the link while packets flow: `rtt_ms`, `jitter_ms`, `loss`, `cut`."""
        self.link = msgspec.structs.replace(self.link, **figures)
        self.out.impairment.use(self.link)
        self.back.impairment.use(self.link)

    def close(self) -> None:
        for peer in list(self._peers):
            self._forget(peer)
        self._loop.remove_reader(self._listening)
        self._listening.close()

    def _from_clients(self) -> None:
        for _ in range(_BATCH):
            try:
                data, peer = self._listening.recvfrom(_MAX_DATAGRAM)
            except (BlockingIOError, ConnectionError):
                return
            now = CLOCK.now()
            upstream = self._upstream(peer, now)
            self.out.carry(now, partial(upstream.send, data))

    def _upstream(self, peer: tuple[str, int], now: float) -> socket.socket:
        known = self._peers.pop(peer, None)
        if known is None:
            self._make_room(now)
            upstream = _udp_socket()
            upstream.connect(self._target)
            self._loop.add_reader(upstream, self._from_target, upstream, peer)
            known = _Peer(upstream)
        known.heard_s = now
        self._peers[peer] = known  # last in the order: heard from most recently
        return known.upstream

    def _make_room(self, now: float) -> None:
        """Forget clients that went away; a new one comes with each reconnection."""
        while self._peers:
            oldest = next(iter(self._peers))
            idle = now - self._peers[oldest].heard_s > PEER_IDLE_S
            if not idle and len(self._peers) < MAX_PEERS:
                return
            self._forget(oldest)

    def _forget(self, peer: tuple[str, int]) -> None:
        upstream = self._peers.pop(peer).upstream
        self._loop.remove_reader(upstream)
        upstream.close()

    def _from_target(self, upstream: socket.socket, peer: tuple[str, int]) -> None:
        for _ in range(_BATCH):
            try:
                data = upstream.recv(_MAX_DATAGRAM)
            except BlockingIOError:
                return
            except ConnectionError:
                self.out.refused += 1  # the target's machine said that nobody listens
                return
            self.back.carry(CLOCK.now(), partial(self._listening.sendto, data, peer))


class Wan:
    """All links of one emulator."""

    def __init__(self, wanted: WanSettings) -> None:
        loop = asyncio.get_running_loop()
        self._line = DelayLine(loop)
        self.relays: dict[str, Relay] = {}
        try:
            for index, link in enumerate(wanted.links):
                rng = Random(f"{wanted.seed}/{index}")
                self.relays[link.name] = Relay(link, loop, self._line, rng)
        except LabError:
            self.close()
            raise

    def close(self) -> None:
        for relay in self.relays.values():
            relay.close()
        self._line.close()


def _udp_socket() -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setblocking(False)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        made.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER_BYTES)
    return made


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


async def _run(wanted: WanSettings) -> None:
    wan = Wan(wanted)
    shutdown = Shutdown()

    async def close() -> None:
        for name, relay in wan.relays.items():
            log.info(
                "link",
                link=name,
                delivered=relay.out.delivered + relay.back.delivered,
                lost=relay.out.lost + relay.back.lost,
                overflowed=relay.out.overflowed + relay.back.overflowed,
                refused=relay.out.refused + relay.back.refused,
            )
        wan.close()

    shutdown.add("links", close)
    log.info("links up", links=len(wan.relays))
    await shutdown.wait()


def main(
    settings_file: Annotated[Path, typer.Option("--settings", help="The links, in YAML.")],
) -> None:
    """Emulate the links of a settings file until SIGTERM."""
    logs.configure("wan")
    try:
        uvloop.run(_run(settings.load(WanSettings, settings_file)))
    except TradewindError as error:
        print(f"lab.wan: {error}", file=sys.stderr)
        raise typer.Exit(2) from error


if __name__ == "__main__":
    typer.run(main)
