"""One link's sockets: one that clients send to, and one towards the target per client."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from msgspec import Struct

from lab.errors import LabError
from lab.wan.delay_line import DelayLine
from lab.wan.figures import BACK, OUT, Figures, WanLink, Way, checked
from lab.wan.held import Held
from lab.wan.impairment import Impairment
from runtime.clock import SystemClock
from topology.overlay.udp import Address, Batch, UdpPort

CLOCK = SystemClock()

MAX_PEERS = 256  # clients of one link that are told apart; the one that was silent longest goes
PEER_IDLE_S = 60.0  # a client silent for so long is forgotten when a new one comes
MAX_UNDER_WAY = 16_384  # packets of one link and direction; more are dropped, as by a full buffer


class Counters(Struct, frozen=True, kw_only=True):
    """What became of one direction's packets since the emulator started."""

    sent: int
    sent_bytes: int
    delivered: int
    delivered_bytes: int
    lost: int
    cut: int
    overflowed: int  # no room: in the queue before the wire, under way, or in the kernel
    refused: int  # nobody listened at the other end
    duplicated: int
    reordered: int
    under_way: int


class Direction:
    """One way of one link: what is under way, and what became of it."""

    def __init__(self, figures: Figures, line: DelayLine, seed: str, flap_seed: str = "") -> None:
        self.held = Held(figures)
        self.impairment = Impairment(figures, seed, flap_seed, CLOCK.now())
        self._line = line
        self._under_way = 0
        self._sent = 0
        self._sent_bytes = 0
        self._delivered = 0
        self._delivered_bytes = 0
        self._overflowed = 0
        self.refused = 0

    def apply(self, now: float) -> None:
        """Let packets from now on suffer what `held` says."""
        self.impairment.use(self.held.at(now), now)

    def carry(self, now: float, datagrams: list[bytes], lane: Lane) -> None:
        """Let packets suffer what the link does to them; what is due together stays together."""
        arrivals = self.impairment.arrivals
        train: list[bytes] = []
        due = 0.0
        for data in datagrams:
            self._sent += 1
            self._sent_bytes += len(data)
            for arrival in arrivals(now, len(data)):
                if self._under_way >= MAX_UNDER_WAY:
                    self._overflowed += 1
                    continue
                self._under_way += 1
                if train and arrival != due:
                    self._line.add(due, lane, train)
                    train = []
                due = arrival
                train.append(data)
        if train:
            self._line.add(due, lane, train)

    def arrived(self, datagrams: list[bytes], dropped: int, refused: bool) -> None:
        """They have been handed to the kernel, which did not take the last `dropped` of them."""
        self._under_way -= len(datagrams)
        self._delivered += len(datagrams) - dropped
        self._delivered_bytes += sum(map(len, datagrams[: len(datagrams) - dropped]))
        if refused:
            self.refused += dropped
        else:
            self._overflowed += dropped

    @property
    def counters(self) -> Counters:
        impairment = self.impairment
        dropped = impairment.dropped
        return Counters(
            sent=self._sent,
            sent_bytes=self._sent_bytes,
            delivered=self._delivered,
            delivered_bytes=self._delivered_bytes,
            lost=dropped.lost,
            cut=dropped.cut,
            overflowed=dropped.overflowed + self._overflowed,
            refused=self.refused,
            duplicated=impairment.duplicated,
            reordered=impairment.reordered,
            under_way=self._under_way,
        )


class Lane:
    """The socket that one direction's packets leave by, for one client of the link."""

    def __init__(self, direction: Direction, port: UdpPort, address: Address | None) -> None:
        self._direction = direction
        self._port = port
        self._address = address
        self.refused = False  # the kernel said so in the send that is going on

    def arrive(self, datagrams: list[bytes]) -> None:
        counters = self._port.counters
        before, self.refused = counters.dropped, False
        self._port.send(datagrams, self._address)
        self._direction.arrived(datagrams, counters.dropped - before, self.refused)


class _Peer:
    """A client of a link: the socket that speaks to the target for it, and when it last sent."""

    def __init__(self, relay: Relay, target: Address, address: Address) -> None:
        self._relay = relay
        self.port = UdpPort.connect(
            relay.loop, socket.AF_INET, target, self._from_target, self._refused
        )
        self.heard_s = 0.0
        self.out = Lane(relay.out, self.port, None)
        self._back = Lane(relay.back, relay.listening, address)

    def _from_target(self, batch: Batch) -> None:
        self._relay.back.carry(CLOCK.now(), [data for data, _ in batch], self._back)

    def _refused(self) -> None:
        self.out.refused = True
        self._relay.refusals += 1


class Relay:
    """One link while it is up."""

    def __init__(
        self, link: WanLink, loop: asyncio.AbstractEventLoop, line: DelayLine, seed: str
    ) -> None:
        self.link = link
        self.loop = loop
        self.refusals = 0  # times that the target's machine said that nobody listens
        flap_seed = f"{seed}/flap"  # a link that flaps is down both ways at once
        self.out = Direction(link.figures(OUT), line, f"{seed}/out", flap_seed)
        self.back = Direction(link.figures(BACK), line, f"{seed}/back", flap_seed)
        self._target = _address(link.target)
        self._peers: dict[Address, _Peer] = {}  # silent longest first
        try:
            self.listening = UdpPort.bind(
                loop, socket.AF_INET, _address(link.listen), self._from_clients
            )
        except OSError as error:
            raise LabError(f"link {link.name}: cannot listen on {link.listen}: {error}") from error

    def ways(self, direction: Way) -> tuple[Direction, ...]:
        both = {OUT: (self.out,), BACK: (self.back,)}
        return both.get(direction, (self.out, self.back))

    def set(self, direction: Way = "both", until: float | None = None, **figures: Any) -> None:
        """Change figures while packets flow, for good or `until`. Raises `LabError`."""
        changes = checked(figures)
        now = CLOCK.now()
        for way in self.ways(direction):
            way.held.set(changes, until)
            way.apply(now)

    def reset(self, direction: Way = "both") -> None:
        """Every figure as the settings have it."""
        now = CLOCK.now()
        for way in self.ways(direction):
            way.held.reset()
            way.apply(now)

    def close(self) -> None:
        for address in list(self._peers):
            self._forget(address)
        self.listening.close()

    def unread(self, drops: dict[tuple[str, int], int]) -> tuple[int, int]:
        """Of what the kernel dropped by (address, port): ours, out and back."""
        ports = {peer.port.local_port for peer in self._peers.values()}
        back = sum(lost for (_, port), lost in drops.items() if port in ports)
        return drops.get(_address(self.link.listen), 0), back

    @property
    def clients(self) -> int:
        return len(self._peers)

    def _from_clients(self, batch: Batch) -> None:
        now = CLOCK.now()
        start = 0
        while start < len(batch):
            address, stop = batch[start][1], start + 1
            while stop < len(batch) and batch[stop][1] == address:
                stop += 1
            peer = self._peer(address, now)
            if peer is not None:
                self.out.carry(now, [data for data, _ in batch[start:stop]], peer.out)
            start = stop

    def _peer(self, address: Address, now: float) -> _Peer | None:
        """None where the machine has no more sockets for a new one."""
        known = self._peers.pop(address, None)
        if known is None:
            self._make_room(now)
            try:
                known = _Peer(self, self._target, address)
            except OSError:
                self.refusals += 1
                return None
        known.heard_s = now
        self._peers[address] = known  # last in the order: heard from most recently
        return known

    def _make_room(self, now: float) -> None:
        """Forget clients that went away; a new one comes with each reconnection."""
        while self._peers:
            oldest = next(iter(self._peers))
            idle = now - self._peers[oldest].heard_s > PEER_IDLE_S
            if not idle and len(self._peers) < MAX_PEERS:
                return
            self._forget(oldest)

    def _forget(self, address: Address) -> None:
        self._peers.pop(address).port.close()


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)
