"""Congestion control for long private paths: a little random loss is not congestion.

NewReno and CUBIC halve their window for every lost packet, so that at 1% of loss and 180 ms a
connection carries about 15 packets per round trip, whatever the path could take. Here, as in
BBRv2, loss below a threshold is repaired and otherwise ignored; above it the window shrinks. A
window grows only while it is used (RFC 9002, section 7.8). Measured in docs/performance.md.
"""

from __future__ import annotations

from collections.abc import Iterable

from aioquic.quic.congestion.base import (
    QuicCongestionControl,
    QuicRttMonitor,
    register_congestion_control,
)
from aioquic.quic.packet_builder import QuicSentPacket
from aioquic.quic.recovery import QuicPacketPacer

NAME = "tradewind"
_INITIAL_PACKETS = 32
_MIN_PACKETS = 4
_TOLERATED_LOSS = 0.02  # of the bytes that were acknowledged or lost lately
_SUSPICIOUS_PACKETS = 4  # fewer lost packets than this prove nothing
_REDUCTION = 0.7  # as CUBIC's (RFC 9438)
_PACING_GAIN = 2  # of the window per round trip
_BURST_PACKETS = 32
_MEMORY = 0.75  # how much of the older rounds' counts survives each round


class TolerantCongestionControl(QuicCongestionControl):
    """Slow start and additive increase; a decrease when loss is more than random."""

    def __init__(self, *, max_datagram_size: int) -> None:
        super().__init__(max_datagram_size=max_datagram_size)
        self._packet = max_datagram_size
        self.congestion_window = _INITIAL_PACKETS * max_datagram_size
        self._monitor = QuicRttMonitor()
        self._acked = self._lost = 0.0  # bytes, fading round by round
        self._lost_packets = 0.0
        self._round_began = self._cut_at = -1.0
        self._used = 0  # the most bytes in flight in this round
        self._credit = 0  # acknowledged bytes that have not grown the window yet
        self.packets_acked = self.packets_lost = 0

    def on_packet_sent(self, *, packet: QuicSentPacket) -> None:
        self.bytes_in_flight += packet.sent_bytes
        if self.bytes_in_flight > self._used:
            self._used = self.bytes_in_flight

    def on_packet_acked(self, *, now: float, packet: QuicSentPacket) -> None:
        sent_s: float = packet.sent_time or 0.0
        self.packets_acked += 1
        self.bytes_in_flight -= packet.sent_bytes
        self._acked += packet.sent_bytes
        if sent_s >= self._round_began:  # a round trip has gone by
            self._round_began = now
            self._acked *= _MEMORY
            self._lost *= _MEMORY
            self._lost_packets *= _MEMORY
            self._used = self.bytes_in_flight + packet.sent_bytes
        if sent_s <= self._cut_at or self._used * 2 < self.congestion_window:
            return
        if self.ssthresh is None or self.congestion_window < self.ssthresh:
            self.congestion_window += packet.sent_bytes
            return
        self._credit += packet.sent_bytes
        step = max(self._packet, self.congestion_window // 64)  # per round trip
        if self._credit * step >= self.congestion_window * self._packet:
            self._credit = 0
            self.congestion_window += self._packet

    def on_packets_expired(self, *, packets: Iterable[QuicSentPacket]) -> None:
        for packet in packets:
            self.bytes_in_flight -= packet.sent_bytes

    def on_packets_lost(self, *, now: float, packets: Iterable[QuicSentPacket]) -> None:
        latest = -1.0
        for packet in packets:
            self.bytes_in_flight -= packet.sent_bytes
            self._lost += packet.sent_bytes
            self._lost_packets += 1
            self.packets_lost += 1
            latest = max(latest, packet.sent_time or 0.0)
        seen = self._lost + self._acked
        if (
            latest > self._cut_at  # once per round trip
            and self._lost_packets >= _SUSPICIOUS_PACKETS
            and self._lost > _TOLERATED_LOSS * seen
        ):
            self._cut_at = now
            self._cut(int(self.congestion_window * _REDUCTION))

    def on_persistent_congestion(self) -> None:
        # A cut of the path, nearly always. Begin anew, and find what it took before in a few
        # round trips: by one packet in each, an interactive path would crawl for minutes.
        before = self.congestion_window
        self._cut(0)
        self.ssthresh = max(before, self.congestion_window)

    def on_rtt_measurement(self, *, now: float, rtt: float) -> None:
        # Leave slow start when queues begin to fill, before they overflow.
        if self.ssthresh is None and self._monitor.is_rtt_increasing(now=now, rtt=rtt):
            self.ssthresh = self.congestion_window

    def _cut(self, window: int) -> None:
        self.congestion_window = max(window, _MIN_PACKETS * self._packet)
        self.ssthresh = self.congestion_window
        self._acked = self._lost = self._lost_packets = 0.0


class Pacer(QuicPacketPacer):
    """Twice the window per round trip, and bursts: a turn's requests leave at once.

    aioquic spreads one window over the whole round trip, in bursts of a quarter of it, which
    held a turn's requests back for up to half a round trip.
    """

    def update_rate(self, congestion_window: int, smoothed_rtt: float) -> None:
        super().update_rate(_PACING_GAIN * congestion_window, smoothed_rtt)
        assert self.packet_time is not None
        self.bucket_max = max(self.bucket_max, _BURST_PACKETS * self.packet_time)


register_congestion_control(NAME, TolerantCongestionControl)
