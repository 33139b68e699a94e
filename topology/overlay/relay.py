"""The relay of one overlay server: passes on the datagrams of other people's QUIC connections.

A member of the mesh asks for a *binding* to a region (RELAY alone on a stream), and from then on
puts the binding's head before each datagram that is to go there:

    0x1f, 8 bytes of the binding, a QUIC datagram

The head's first byte is never one of QUIC version 1 (RFC 9000, section 17: its second bit is
set), so both share the server's port. What comes back gets the same head. The connection inside
is encrypted from end to end, and flow and congestion control are its ends' own: the relay can
neither read nor forge, and nothing waits here but in the kernel's socket buffers. See
docs/decisions/0013-relays-forward-datagrams.md.

Who may pass is settled when a binding is made; a datagram costs one look-up. The peer never names
an address: `Route` does. What is behind a head must look like QUIC itself, so that a second head
never leaves a relay: no datagram passes more than one of them, and no loop can be built.
"""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import Callable
from typing import Annotated, TypeAlias

from msgspec import Meta, Struct

from runtime import logs
from runtime.clock import Clock
from runtime.identity import Principal
from topology.overlay.frames import Failure, Relay, Relayed
from topology.overlay.udp import Address, Batch, UdpPort, resolve

log = logs.get("relay")

HEAD = b"\x1f"
BINDING_BYTES = 8
HEAD_BYTES = len(HEAD) + BINDING_BYTES
DATAGRAM_BYTES = 1472  # that a relay passes on, unless it is told otherwise: a frame of Ethernet
_QUIC_BIT = 0x40  # set in each datagram's first byte (RFC 9000, section 17)
_BURST_S = 0.25  # of a rate may come at once
_RESOLVE_S = 5.0
_READ_BYTES = 65_536

Route: TypeAlias = Callable[[str, int], str | None]  # region, turn -> "host:port" of a core of it
Send: TypeAlias = Callable[[list[bytes], Address], None]


class RelaySettings(Struct, frozen=True, forbid_unknown_fields=True):
    """What a relay may hold and pass on.

    Each binding takes one socket and 2 KiB, so half of the file descriptors that the process may
    open (`ulimit -n`) bound them too.
    """

    max_bindings: Annotated[int, Meta(ge=0)] = 4096  # 0: this server relays nothing
    max_bindings_per_peer: Annotated[int, Meta(ge=1)] = 256  # of one certificate's name
    max_binding_now: Annotated[int, Meta(ge=1)] = 64  # being made at once
    # Then a binding lapses: more than any edge's `probe_idle_ms`, or its idle paths die of it.
    idle_ms: Annotated[int, Meta(ge=1000)] = 30_000
    # A binding that was silent for so long gives way to a new one where there is no room left.
    gives_way_ms: Annotated[int, Meta(ge=0)] = 5000
    datagrams_per_s: Annotated[int, Meta(ge=1)] = 30_000  # of one peer, each way
    total_datagrams_per_s: Annotated[int, Meta(ge=1)] = 60_000  # of all of them, each way
    max_datagram_bytes: Annotated[int, Meta(ge=1200, le=65507)] = DATAGRAM_BYTES  # without the head
    socket_buffer_bytes: Annotated[int, Meta(ge=4096)] = 256 * 1024  # of each binding, each way


class RelayCounters(Struct):
    """What a relay has done since it was started."""

    bound: int = 0
    refused_unknown: int = 0  # regions that no snapshot knows
    refused_full: int = 0
    refused_unreachable: int = 0  # no route, no name, no file descriptor
    ended_idle: int = 0
    ended_for_others: int = 0  # they had been silent, and there was no room
    ended_unknown: int = 0  # their region is known no more
    ended_unwanted: int = 0  # nobody waited for them any more
    forwarded: int = 0  # datagrams, towards the region
    forwarded_bytes: int = 0  # without heads
    returned: int = 0
    returned_bytes: int = 0
    dropped_unbound: int = 0  # no binding, or one that has lapsed
    dropped_address: int = 0  # from another host than the binding was made from
    dropped_not_quic: int = 0
    dropped_size: int = 0
    dropped_rate: int = 0
    unreachable: int = 0  # times that the kernel said that nobody listens there

    def by_reason(self, name: str) -> list[tuple[str, int]]:
        """What counts as `name`, by why."""
        start = f"{name}_"
        return [
            (field.removeprefix(start), getattr(self, field))
            for field in self.__struct_fields__
            if field.startswith(start)
        ]


class _Rate:
    """A token bucket: `take` says how many of the datagrams that wait may pass."""

    __slots__ = ("_at", "_burst", "_left", "_per_s")

    def __init__(self, per_s: float, now: float) -> None:
        self._per_s = per_s
        self._burst = max(1.0, per_s * _BURST_S)
        self._left = self._burst
        self._at = now

    def take(self, wanted: int, now: float) -> int:
        left = min(self._burst, self._left + (now - self._at) * self._per_s)
        self._at = now
        taken = min(wanted, int(left))
        self._left = left - taken
        return taken


class _Peer:
    """What one member of the mesh has taken of the relay."""

    __slots__ = ("back", "bindings", "out")

    def __init__(self, per_s: float, now: float) -> None:
        self.bindings = 0  # those that are being made included
        self.out, self.back = _Rate(per_s, now), _Rate(per_s, now)


class Binding:
    """Datagrams of one peer to one core. `address` is where answers go."""

    __slots__ = ("address", "head", "host", "peer", "port", "region", "taken", "used")

    def __init__(
        self, head: bytes, peer: Principal, region: str, host: str, taken: _Peer, now: float
    ) -> None:
        self.head = head
        self.peer = peer
        self.region = region
        self.host = host  # whose datagrams it takes
        self.address: Address = None
        self.used = now  # when the peer last sent something
        self.taken = taken
        self.port: UdpPort


class UdpRelay:
    """All bindings of one server. `send` is its socket's; call `close` at the end."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        route: Route,
        settings: RelaySettings,
        send: Send,
    ) -> None:
        self.counters = RelayCounters()
        self.settings = settings
        self._loop = loop
        self._clock = clock
        self._route = route
        self._send = send
        self._bindings: dict[bytes, Binding] = {}  # by head
        self._peers: dict[Principal, _Peer] = {}
        self._making = 0
        self.max_bindings = min(settings.max_bindings, _files() // 2)
        self._buffer = bytearray(_READ_BYTES)  # of all sockets: each is emptied in its turn
        now = clock.now()
        total = settings.total_datagrams_per_s
        self._out, self._back = _Rate(total, now), _Rate(total, now)

    @property
    def bindings(self) -> int:
        return len(self._bindings)

    # Bindings

    @property
    def full(self) -> bool:
        """So many are being made that one more is refused at once."""
        return self._making >= self.settings.max_binding_now

    def refuse(self) -> Failure:
        self.counters.refused_full += 1
        return _FULL

    async def bind(self, peer: Principal, host: str, asked: Relay) -> Relayed | Failure:
        """Let `peer`, whose address is `host`, reach a core of a region."""
        settings, counters = self.settings, self.counters
        target = self._route(asked.region, asked.turn)
        if target is None:
            counters.refused_unknown += 1
            return _unknown(asked.region)
        if self.full or not self._room(peer):
            return self.refuse()
        self._making += 1
        taken = self._enter(peer)
        try:
            async with asyncio.timeout(_RESOLVE_S):
                family, address = await resolve(target)
            if self._route(asked.region, asked.turn) is None:
                raise OSError("it has just left the map")  # which `review` did not see here
            binding = Binding(
                HEAD + os.urandom(BINDING_BYTES), peer, asked.region, host, taken, self._clock.now()
            )
            binding.port = self._open(binding, family, address)
        except (OSError, TimeoutError) as error:
            self._leave(peer)
            counters.refused_unreachable += 1
            return _unreachable(asked.region, error)
        except BaseException:
            self._leave(peer)
            raise
        finally:
            self._making -= 1
        self._bindings[binding.head] = binding
        counters.bound += 1
        return Relayed(binding.head[len(HEAD) :], settings.idle_ms)

    def _open(self, binding: Binding, family: int, address: Address) -> UdpPort:
        return UdpPort.connect(
            self._loop,
            family,
            address,
            lambda batch: self._answered(binding, batch),
            self._refused,
            buffer_bytes=self.settings.socket_buffer_bytes,
            read_into=self._buffer,
        )

    def unbind(self, relayed: Relayed) -> None:
        """Nobody waits for it any more."""
        binding = self._bindings.get(HEAD + relayed.binding)
        if binding is not None:
            self._end(binding)
            self.counters.ended_unwanted += 1

    def _room(self, peer: Principal) -> bool:
        """Whether one more may be made, after a silent one has given way if need be."""
        taken = self._peers.get(peer)
        if taken is not None and taken.bindings >= self.settings.max_bindings_per_peer:
            return self._give_way(peer)
        if len(self._bindings) + self._making >= self.max_bindings:
            return self._give_way(None)
        return True

    def _give_way(self, peer: Principal | None) -> bool:
        """End the binding, of this peer or of anyone, that has been silent longest."""
        held = [b for b in self._bindings.values() if peer is None or b.peer == peer]
        oldest = min(held, key=lambda binding: binding.used, default=None)
        before = self._clock.now() - self.settings.gives_way_ms / 1000
        if oldest is None or oldest.used > before:
            return False
        self._end(oldest)
        self.counters.ended_for_others += 1
        return True

    def _end(self, binding: Binding) -> None:
        del self._bindings[binding.head]
        binding.port.close()
        self._leave(binding.peer)

    def _enter(self, peer: Principal) -> _Peer:
        taken = self._peers.get(peer)
        if taken is None:
            taken = self._peers[peer] = _Peer(self.settings.datagrams_per_s, self._clock.now())
        taken.bindings += 1
        return taken

    def _leave(self, peer: Principal) -> None:
        taken = self._peers[peer]
        taken.bindings -= 1
        if not taken.bindings:
            del self._peers[peer]

    def expire(self, now: float) -> None:
        """End what nobody has used for `idle_ms`. Call it about once a second."""
        before = now - self.settings.idle_ms / 1000
        for binding in [b for b in self._bindings.values() if b.used < before]:
            self._end(binding)
            self.counters.ended_idle += 1

    def review(self) -> None:
        """End what leads to regions that are known no more: the map has changed."""
        for binding in [b for b in self._bindings.values() if self._route(b.region, 0) is None]:
            self._end(binding)
            self.counters.ended_unknown += 1

    def close(self) -> None:
        for binding in list(self._bindings.values()):
            self._end(binding)

    # Datagrams

    def pick(self, batch: Batch, now: float) -> Batch:
        """Of what came in at the server's port, pass on what is not QUIC; the rest is returned."""
        headed = [pair for pair in batch if pair[0][0] < _QUIC_BIT]
        if not headed:
            return batch
        self._forward(headed, now)
        return [pair for pair in batch if pair[0][0] >= _QUIC_BIT]

    def _forward(self, batch: Batch, now: float) -> None:
        bindings, counters = self._bindings, self.counters
        most = self.settings.max_datagram_bytes + HEAD_BYTES
        runs: dict[Binding, list[bytes]] = {}
        for data, address in batch:
            binding = bindings.get(data[:HEAD_BYTES])
            if binding is None:
                counters.dropped_unbound += 1
                continue
            if len(data) > most:
                counters.dropped_size += 1
                continue
            inner = data[HEAD_BYTES:]
            if not inner or not inner[0] & _QUIC_BIT:
                counters.dropped_not_quic += 1
                continue
            if address != binding.address:
                if address[0] != binding.host:
                    counters.dropped_address += 1
                    continue
                binding.address = address  # its port has changed, or this is the first
            run = runs.get(binding)
            if run is None:
                runs[binding] = [inner]
            else:
                run.append(inner)
        for binding, run in runs.items():
            binding.used = now
            passed = self._take(binding.taken.out, self._out, run, now)
            counters.forwarded += len(passed)
            counters.forwarded_bytes += sum(map(len, passed))
            binding.port.send(passed, None)

    def _answered(self, binding: Binding, batch: Batch) -> None:
        """The region's core sent something back."""
        head, address = binding.head, binding.address
        if address is None:
            return
        headed = [head + data for data, _ in batch]
        passed = self._take(binding.taken.back, self._back, headed, self._clock.now())
        self.counters.returned += len(passed)
        self.counters.returned_bytes += sum(map(len, passed)) - HEAD_BYTES * len(passed)
        self._send(passed, address)

    def _take(self, own: _Rate, total: _Rate, run: list[bytes], now: float) -> list[bytes]:
        count = len(run)
        taken = total.take(own.take(count, now), now)
        if taken == count:
            return run
        self.counters.dropped_rate += count - taken
        return run[:taken]

    def _refused(self) -> None:
        self.counters.unreachable += 1


def _files() -> int:
    """How many file descriptors this process may have."""
    limit: int = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return limit if limit != resource.RLIM_INFINITY else 2**31


_FULL = Failure(
    code="overloaded",
    message="this region relays for as many as it may already",
    status=503,
    retryable=True,
    reason="relay_full",
)
NO_RELAY = Failure(
    code="invalid",
    message="this region relays nothing",
    status=501,
    retryable=False,
    reason="no_relay",
)


def _unknown(region: str) -> Failure:
    return Failure(
        code="invalid",
        message=f"this region knows no way to a core of {region[:64]!r}",
        status=404,
        retryable=True,
        param="region",
        reason="relay_unknown_region",
    )


def _unreachable(region: str, error: OSError | TimeoutError) -> Failure:
    what = "its name is not resolved" if isinstance(error, TimeoutError) else str(error)
    return Failure(
        code="internal",
        message=f"this region cannot reach {region}: {what}"[:500],
        status=503,
        retryable=True,
        reason="relay_unreachable",
    )
