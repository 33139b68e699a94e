"""Watches the path of one connection: sends its probes, hears their echoes, keeps its timer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from msgspec import Struct

from runtime.clock import Clock
from topology.overlay.connection import OverlayConnection
from topology.overlay.monitor import Estimate, PathMonitor, PathState, Rules
from topology.overlay.probe import Budget, Echo, decode, encode_probe


class Shell(Struct):
    """What a watch needs of the connection that it watches."""

    busy: Callable[[], object]  # something true while exchanges are open
    read_now: Callable[[], bool]  # take in what has arrived; whether that was all
    mark: Callable[[], None]  # something is to be sent
    on_state: Callable[[PathState, str], None]  # a new state of the path, and why
    on_over: Callable[[str], None]  # the connection is to be ended, and why


class Watch:
    """Begins when it is made, with a connection that both ends have accepted."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        quic: OverlayConnection,
        rules: Rules,
        shell: Shell,
        renew_share: float,
    ) -> None:
        self.strange = 0  # datagrams that answer nothing, or are too many
        self._loop = loop
        self._clock = clock
        self._quic = quic
        self._shell = shell
        self._budget = Budget()
        self._monitor = PathMonitor(clock.now(), rules, quic.seen())
        self._hurry_s = rules.busy_every_s
        self._told: PathState = self._monitor.state
        self._at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False
        self._expires_s = quic.expires_s or math.inf
        left_s = self._expires_s - clock.wall()
        self._renew_s = self._expires_s - renew_share * left_s if left_s < math.inf else math.inf
        quic.on_datagram = self._datagram
        self._by(clock.now())

    @property
    def estimate(self) -> Estimate:
        return self._monitor.estimate(self._clock.now())

    @property
    def distance_s(self) -> float:
        """The path's own round-trip time."""
        return self._monitor.rtt_s(self._clock.now())

    def hurry(self) -> None:
        """Exchanges are open now, and were not."""
        self._by(self._clock.now() + self._hurry_s)

    def stop(self) -> None:
        self._stopped = True
        self._quic.on_datagram = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def acknowledged(self, number: int) -> None:
        """The peer got a PING of ours."""
        self._monitor.acknowledged(number, self._clock.now())
        self._loop.call_soon(self._tell)

    def _datagram(self, data: bytes, now: float) -> None:
        echo = decode(data) if self._budget.take(now) else None
        if not isinstance(echo, Echo) or not self._monitor.echoed(echo, now):
            self.strange += 1
        elif self._monitor.state != self._told:
            self._loop.call_soon(self._tell)  # when all that has come was taken in

    def _by(self, at: float) -> None:
        """See to it that the path is judged at `at`, or earlier."""
        if self._timer is not None:
            if self._at <= at:
                return
            self._timer.cancel()
        self._at = at
        self._timer = self._loop.call_later(max(0.0, at - self._clock.now()), self._judge)

    def _judge(self) -> None:
        self._timer = None
        behind = not self._shell.read_now()
        if self._stopped:  # by what was read
            return
        now = self._clock.now()
        busy = bool(self._shell.busy())
        verdict = self._monitor.judge(now, self._quic.seen(), busy, behind)
        if verdict.over:
            self._shell.on_over(self._monitor.why)
            return
        if verdict.probe is not None:
            self._send(verdict.probe)
        self._by(verdict.again_s)
        self._tell()
        self._check_certificates()

    def _check_certificates(self) -> None:
        """A connection outlives no certificate. It gives way to another one before that, while it
        is idle, so that not all that began together end together, with all that runs in them."""
        wall = self._clock.wall()
        if wall < self._renew_s or self._stopped:
            return
        if wall >= self._expires_s:
            self._shell.on_over("a certificate has run out")
        elif not self._shell.busy():
            self._shell.on_over("a certificate is about to run out")

    def _send(self, number: int) -> None:
        if self._quic.takes_datagrams:
            self._quic.send_datagram(encode_probe(number))
        else:
            self._quic.send_ping(number)  # an older peer acknowledges it, and that is an answer
        self._shell.mark()

    def _tell(self) -> None:
        state = self._monitor.state
        if state != self._told and not self._stopped:
            self._told = state
            self._shell.on_state(state, self._monitor.why)
