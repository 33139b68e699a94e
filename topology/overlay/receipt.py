"""aioquic's connection, with a short way in for the packets that make up nearly all traffic.

A packet with a short header, on the path and the connection id in use, cannot migrate anything,
negotiate anything or belong to a handshake, so most of what aioquic checks for every packet is
decided beforehand. All others take aioquic's own way. ACKs are sent for several packets at once.
See docs/decisions/0003-overlay-on-aioquic.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aioquic import tls
from aioquic.buffer import Buffer, BufferReadError  # type: ignore[attr-defined]
from aioquic.quic.connection import (
    QuicConnection,
    QuicConnectionError,
    QuicConnectionState,
    QuicReceiveContext,
)
from aioquic.quic.crypto import CryptoError  # type: ignore[attr-defined]
from aioquic.quic.packet import NON_ACK_ELICITING_FRAME_TYPES, QuicErrorCode, QuicFrameType
from aioquic.quic.recovery import MAX_ACK_RANGES
from aioquic.quic.stream import StreamFinishedError

from topology.overlay.probe import MAX_FRAME_BYTES

_ONE_RTT = tls.Epoch.ONE_RTT
_PADDING: int = QuicFrameType.PADDING
_PING: int = QuicFrameType.PING
_ACK_EVERY = 8  # packets, or
_ACK_DELAY_S = 0.005  # whichever comes first; below the 25 ms that aioquic announces


class Receipt(QuicConnection):
    """A connection that takes 1-RTT packets in quickly."""

    def __init__(self, **rest: Any) -> None:
        super().__init__(**rest)
        self._context: QuicReceiveContext | None = None
        self._unacknowledged = 0  # packets that asked for an ACK since we sent one
        self.packets_in = 0  # that came the short way
        self.on_datagram: Callable[[bytes, float], None] | None = None  # what it says, and when

    @property
    def heard_s(self) -> float:
        """When the peer's latest 1-RTT packet came in; 0 before the first."""
        space = self._spaces.get(_ONE_RTT)
        return (space.largest_received_time or 0.0) if space is not None else 0.0

    def receive_datagram(self, data: bytes, addr: Any, now: float) -> None:
        if (
            data[0] & 0xC0 == 0x40  # a short header (RFC 9000, section 17.3)
            and self._handshake_confirmed
            and data.startswith(self.host_cid, 1)
            and addr == self._network_paths[0].addr
            and self._network_paths[0].is_validated
        ):
            if self._state is QuicConnectionState.CONNECTED and not self._close_pending:
                self._receive_short(data, now)
        else:
            super().receive_datagram(data, addr, now)

    def _receive_short(self, data: bytes, now: float) -> None:
        """A 1-RTT packet on the path and the connection id in use: nothing migrates."""
        space = self._spaces[_ONE_RTT]
        try:
            header, payload, number = self._cryptos[_ONE_RTT].decrypt_packet(
                data, 1 + len(self.host_cid), space.expected_packet_number
            )
        except CryptoError:
            return
        if number in space.received_packets:
            return
        if number > space.expected_packet_number:
            space.expected_packet_number = number + 1
        try:
            if header[0] & 0x18:
                raise QuicConnectionError(
                    QuicErrorCode.PROTOCOL_VIOLATION, _PADDING, "reserved bits are set"
                )
            asks_for_ack = self._receive_frames(payload, now)
        except QuicConnectionError as error:
            self.close(error.error_code, error.frame_type, error.reason_phrase)
            return
        if self._state is not QuicConnectionState.CONNECTED or self._close_pending:
            return
        self.packets_in += 1
        self._close_at = now + self._idle_timeout()
        self._ack_eliciting_sent_since_receipt = False
        if number > space.largest_received_packet:
            space.largest_received_packet = number
            space.largest_received_time = now
        space.received_packets.add(number)
        space.ack_queue.add(number)
        if len(space.ack_queue) > MAX_ACK_RANGES:
            space.ack_queue.shift()
        if asks_for_ack:
            self._unacknowledged += 1
            if self._unacknowledged >= _ACK_EVERY:
                space.ack_at = now
            elif space.ack_at is None:
                space.ack_at = now + _ACK_DELAY_S

    def _receive_frames(self, payload: bytes, now: float) -> bool:
        """Act on the frames of a 1-RTT packet; whether one of them asks for an ACK."""
        if not payload:
            raise QuicConnectionError(
                QuicErrorCode.PROTOCOL_VIOLATION, _PADDING, "a packet without frames"
            )
        context = self._context_at(now)
        handlers = self._QuicConnection__frame_handlers  # type: ignore[attr-defined]
        buf = Buffer(data=payload)
        asks_for_ack = False
        kind = _PADDING
        try:
            while not buf.eof():
                kind = buf.pull_uint_var()
                if kind not in NON_ACK_ELICITING_FRAME_TYPES:
                    asks_for_ack = True
                try:
                    if 0x08 <= kind <= 0x0F:
                        self._handle_stream_frame(context, kind, buf)
                    elif kind == _PING:
                        self._unacknowledged = _ACK_EVERY  # it measures the path: answer at once
                    else:
                        handlers[kind][0](context, kind, buf)
                except StreamFinishedError:
                    continue  # a late frame of a stream that is over
        except BufferReadError as error:
            raise QuicConnectionError(
                QuicErrorCode.FRAME_ENCODING_ERROR, kind, "a frame that is cut short"
            ) from error
        except KeyError as error:
            raise QuicConnectionError(
                QuicErrorCode.FRAME_ENCODING_ERROR, kind, "a frame of unknown type"
            ) from error
        return asks_for_ack

    def _handle_datagram_frame(self, context: QuicReceiveContext, kind: int, buf: Buffer) -> None:
        # RFC 9221, section 4: the lowest bit of the type says whether there is a length.
        size = buf.pull_uint_var() if kind & 1 else buf.capacity - buf.tell()
        if size >= MAX_FRAME_BYTES:
            raise QuicConnectionError(
                QuicErrorCode.PROTOCOL_VIOLATION, kind, "a larger DATAGRAM than was announced"
            )
        data = buf.pull_bytes(size)
        if not self._is_client:
            self._unacknowledged = _ACK_EVERY  # so that one packet answers it in both ways
        if self.on_datagram is not None:
            self.on_datagram(data, context.time)

    def _context_at(self, now: float) -> QuicReceiveContext:
        context = self._context
        if context is None or context.network_path is not self._network_paths[0]:
            context = self._context = QuicReceiveContext(
                epoch=_ONE_RTT,
                host_cid=self.host_cid,
                network_path=self._network_paths[0],
                quic_logger_frames=None,
                time=now,
                version=self._version,
            )
        context.host_cid = self.host_cid
        context.time = now
        return context
