"""aioquic's connection, with the work per packet made independent of the number of streams.

aioquic 1.7 visits every open stream for every packet that it builds, twice, and forgets finished
streams only then. With a stream per request and hundreds in flight that is most of its time. Here
a stream is visited when it has something to say: it was written to, it lost a packet, it is to be
reset, or its window grew. Everything that is not about streams is aioquic's own code. See
docs/decisions/0003-overlay-on-aioquic.md; tests/overlay/test_aioquic.py fails when the methods
that this file replaces or leans on change.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Any

from aioquic import tls
from aioquic.buffer import Buffer, size_uint_var  # type: ignore[attr-defined]
from aioquic.quic.connection import QuicConnectionError, QuicReceiveContext
from aioquic.quic.events import StreamDataReceived
from aioquic.quic.packet import QuicErrorCode, QuicFrameType, QuicPacketType, QuicStreamFrame
from aioquic.quic.packet_builder import QuicDeliveryState, QuicPacketBuilder
from aioquic.quic.stream import FinalSizeError, QuicStream, QuicStreamSender

from topology.overlay.congestion import Pacer
from topology.overlay.receipt import Receipt

_ONE_RTT = tls.Epoch.ONE_RTT
_SHORT = QuicPacketType.ONE_RTT
_ACKED, _LOST = QuicDeliveryState.ACKED, QuicDeliveryState.LOST
_STREAM_BASE = int(QuicFrameType.STREAM_BASE)
_STREAM_FIXED_BYTES = 1 + 2  # of a STREAM frame: its type, and a length that takes two bytes
_SPLIT_FROM_BYTES = 256  # with less room left in a packet, a message waits for the next one
_MAX_STREAM_DATA_BYTES = 1 + 8 + 8
_RESET_STREAM_BYTES = 1 + 8 + 8 + 8
_STOP_SENDING_BYTES = 1 + 8 + 8
_DATAGRAM_PACKET_BYTES = 128  # enough for a packet with a DATAGRAM of ours alone


class _Outcome(Enum):
    """Of writing a stream's frames into a packet."""

    FULL = 0  # no room
    DONE = 1  # nothing is left that may be sent now
    MORE = 2  # something is left


class Transport(Receipt):
    """A connection whose streams are all bidirectional and opened by the client."""

    # AES-GCM keys must not encrypt more than 2^23 packets (RFC 9001, section 6.6), and aioquic
    # does not count. The client changes the keys of both ends, well before.
    rekey_packets = 2**21

    def __init__(self, **rest: Any) -> None:
        super().__init__(**rest)
        self._loss._pacer = Pacer(max_datagram_size=self._max_datagram_size)
        self._ready: deque[QuicStream] = deque()  # streams with something to send, in turn
        self._queued: set[QuicStream] = set()  # what is in `_ready`
        self._widened: dict[int, QuicStream] = {}  # streams whose receive window grew
        self._rekey_at = self.rekey_packets
        self._datagram: bytes | None = None  # to be sent in a DATAGRAM frame

    def unsent(self) -> bool:
        """Some stream holds data that the peer has not acknowledged."""
        return any(stream.sender._buffer for stream in self._streams.values())

    # What a caller does to a stream

    def send_stream_data(self, stream_id: int, data: bytes, end_stream: bool = False) -> None:
        stream = self._streams.get(stream_id)
        if stream is None:
            stream = self._get_or_create_stream_for_send(stream_id)
            self._streams_queue.clear()  # aioquic's own schedule, which we do not use
        stream.sender.write(data, end_stream)
        if stream not in self._queued:
            self._queued.add(stream)
            self._ready.append(stream)

    def abandon(self, stream_id: int, code: int) -> None:
        """Neither send nor receive any more on a stream, whatever its state."""
        stream = self._streams.get(stream_id)
        if stream is not None and stream.sender._reset_error_code is None:
            stream.sender.reset(code)
            if not stream.receiver.is_finished:
                stream.receiver.stop(code)
            self._wake(stream)

    def abandoned(self, stream_id: int) -> bool:
        """Whether `abandon` was called for a stream, or the peer reset it."""
        stream = self._streams.get(stream_id)
        return stream is None or stream.sender._reset_error_code is not None

    def grant(self, stream_id: int, limit_bytes: int) -> None:
        """Let the peer send up to `limit_bytes` on a stream, counted from its beginning."""
        stream = self._streams.get(stream_id)
        if stream is not None and limit_bytes > stream.max_stream_data_local:
            stream.max_stream_data_local = limit_bytes
            self._widened[stream_id] = stream

    def unacknowledged_bytes(self, stream_id: int) -> int:
        """What was written to a stream and the peer has not acknowledged yet."""
        stream = self._streams.get(stream_id)
        return 0 if stream is None else len(stream.sender._buffer)

    # What a caller says without a stream

    def send_datagram(self, data: bytes) -> bool:
        """Send bytes in a DATAGRAM frame, and never again. False: they took the place of others
        that could not be sent yet."""
        alone = self._datagram is None
        self._datagram = data
        return alone

    # What the peer does to a stream

    def _get_or_create_stream(self, frame_type: int, stream_id: int) -> QuicStream:
        stream = self._streams.get(stream_id)
        if stream is None:
            stream = super()._get_or_create_stream(frame_type, stream_id)
            self._streams_queue.clear()
        return stream

    def _handle_stream_frame(self, context: QuicReceiveContext, kind: int, buf: Buffer) -> None:
        # RFC 9000, section 19.8: bits of the type say which fields are there.
        stream_id = buf.pull_uint_var()
        offset = buf.pull_uint_var() if kind & 4 else 0
        length = buf.pull_uint_var() if kind & 2 else buf.capacity - buf.tell()
        data = buf.pull_bytes(length)
        stream = self._streams.get(stream_id)
        if stream is None:
            self._assert_stream_can_receive(kind, stream_id)
            stream = self._get_or_create_stream(kind, stream_id)
        receiver, limit = stream.receiver, self._local_max_data
        end = offset + length
        if (  # what nearly all frames are: new data in order, and more to come
            offset == receiver._buffer_start
            and length
            and not kind & 1
            and not receiver._buffer
            and receiver._final_size is None
            and receiver._stop_error_code is None
            and end <= stream.max_stream_data_local
            and limit.used + length <= limit.value
        ):
            receiver._buffer_start = receiver.highest_offset = end
            limit.used += length
            self._events.append(StreamDataReceived(data, False, stream_id))
            return
        fresh = max(0, end - receiver.highest_offset)
        if end > stream.max_stream_data_local or limit.used + fresh > limit.value:
            raise QuicConnectionError(
                QuicErrorCode.FLOW_CONTROL_ERROR, kind, "more data than the window allows"
            )
        try:
            event = receiver.handle_frame(
                QuicStreamFrame(data=data, fin=bool(kind & 1), offset=offset)
            )
        except FinalSizeError as error:
            raise QuicConnectionError(QuicErrorCode.FINAL_SIZE_ERROR, kind, str(error)) from error
        limit.used += fresh
        if event is not None and receiver._stop_error_code is None:
            self._events.append(event)
        if receiver.is_finished and stream.sender.is_finished:
            self._discard(stream)

    def _handle_reset_stream_frame(
        self, context: QuicReceiveContext, kind: int, buf: Buffer
    ) -> None:
        stream_id = _peek(buf)
        super()._handle_reset_stream_frame(context, kind, buf)
        stream = self._streams.get(stream_id)
        if stream is not None and stream.is_finished:
            self._discard(stream)

    def _handle_stop_sending_frame(
        self, context: QuicReceiveContext, kind: int, buf: Buffer
    ) -> None:
        stream_id = _peek(buf)
        super()._handle_stop_sending_frame(context, kind, buf)
        self._wake(self._streams.get(stream_id))

    def _handle_max_stream_data_frame(
        self, context: QuicReceiveContext, kind: int, buf: Buffer
    ) -> None:
        stream_id = _peek(buf)
        super()._handle_max_stream_data_frame(context, kind, buf)
        self._wake(self._streams.get(stream_id))

    def _handle_max_data_frame(self, context: QuicReceiveContext, kind: int, buf: Buffer) -> None:
        super()._handle_max_data_frame(context, kind, buf)
        for stream in self._streams.values():
            self._wake(stream)

    def _unblock_streams(self, is_unidirectional: bool) -> None:
        blocked = list(self._streams_blocked_bidi)
        super()._unblock_streams(is_unidirectional)
        for stream in blocked:
            self._wake(stream)

    def _wake(self, stream: QuicStream | None) -> None:
        """Put a stream in the queue if it has something to send."""
        if stream is None or stream in self._queued or stream.is_blocked:
            return
        sender = stream.sender
        if not sender.buffer_is_empty or sender.reset_pending or stream.receiver.stop_pending:
            self._queued.add(stream)
            self._ready.append(stream)

    def _discard(self, stream: QuicStream) -> None:
        """Forget a finished stream, and let the client open another one instead."""
        stream_id: int = stream.stream_id  # type: ignore[assignment]
        if self._streams.pop(stream_id, None) is not None:
            self._widened.pop(stream_id, None)
            if not self._is_client:
                self._local_max_streams_bidi.value += 1

    # What becomes of packets

    def _on_stream_delivery(
        self, delivery: QuicDeliveryState, stream: QuicStream, start: int, stop: int, fin: bool
    ) -> None:
        sender = stream.sender
        if (  # acknowledged in order, and more to come
            start == sender._buffer_start
            and delivery is _ACKED
            and stop > start
            and not fin
            and sender._buffer_fin is None
            and sender._reset_error_code is None
            and not len(sender._acked)
        ):
            sender._buffer_start = stop
            del sender._buffer[: stop - start]
            return
        sender.on_data_delivery(delivery, start, stop, fin)
        if delivery is _LOST:
            self._wake(stream)
        elif stream.sender.is_finished and stream.receiver.is_finished:
            self._discard(stream)

    def _on_reset_delivery(self, delivery: QuicDeliveryState, stream: QuicStream) -> None:
        stream.sender.on_reset_delivery(delivery)
        self._wake(stream)
        if stream.is_finished:
            self._discard(stream)

    def _on_stop_delivery(self, delivery: QuicDeliveryState, stream: QuicStream) -> None:
        stream.receiver.on_stop_sending_delivery(delivery)
        self._wake(stream)

    def _on_max_stream_data_delivery(self, delivery: QuicDeliveryState, stream: QuicStream) -> None:
        if delivery is _LOST and not stream.receiver.is_finished:
            self._widened[stream.stream_id] = stream  # type: ignore[index]

    # Packets to send

    def _write_application(self, builder: QuicPacketBuilder, network_path: Any, now: float) -> None:
        if self._datagram is not None and builder.max_flight_bytes is not None:
            # As QUIC's own probes (RFC 9002, section 7.5), ours are sent when the congestion
            # window is full of what was lost; that is when they are needed. They are few.
            room = max(builder.max_flight_bytes, _DATAGRAM_PACKET_BYTES)
            builder.max_flight_bytes = room
        if not self._handshake_confirmed or self._control_is_pending(network_path):
            # aioquic's schedule of streams is empty, so it writes everything but streams.
            super()._write_application(builder, network_path, now)
        if not self._handshake_confirmed:
            return
        crypto, space = self._cryptos[_ONE_RTT], self._spaces[_ONE_RTT]
        if max(self._packet_number, space.largest_received_packet) >= self._rekey_at:
            self._rekey_at += self.rekey_packets
            if self._is_client:
                self.request_key_update()
        pacer = self._loss._pacer
        while True:
            ack_is_due = space.ack_at is not None and space.ack_at <= now
            if not ack_is_due and self._datagram is None:
                if not (self._ready or self._widened):
                    return
                self._pacing_at = pacer.next_send_time(now)
                if self._pacing_at is not None:
                    return
            builder.start_packet(_SHORT, crypto)
            if self._datagram is not None:  # before the ACK, which may be large
                self._write_datagram(builder, self._datagram)
            if ack_is_due:
                self._write_ack_frame(builder, space, now)
                self._unacknowledged = 0
            if self._widened:
                self._write_windows(builder)
            if self._ready:
                self._write_streams(builder)
            if builder.packet_is_empty:
                return
            pacer.update_after_send(now)

    def _control_is_pending(self, path: Any) -> bool:
        """Something other than an acknowledgement or a stream is to be sent."""
        streams, data = self._local_max_streams_bidi, self._local_max_data
        return bool(
            self._ping_pending
            or self._probe_pending
            or self._handshake_done_pending
            or self._streams_blocked_pending
            or self._retire_connection_ids
            or not path.is_validated
            or path.remote_challenges
            or streams.sent - streams.used < streams.value - streams.sent
            or data.used * 2 > data.value
            or data.sent != data.value
            or [None for host_cid in self._host_cids if not host_cid.was_sent]
            or not self._crypto_streams[_ONE_RTT].sender.buffer_is_empty
        )

    def _write_stream_limits(self, builder: Any, space: Any, stream: Any) -> None:
        """aioquic's automatic windows; ours follow the consumer, see `grant`."""

    def _write_datagram(self, builder: QuicPacketBuilder, data: bytes) -> None:
        size = len(data)
        buf = builder.start_frame(QuicFrameType.DATAGRAM_WITH_LENGTH, 2 + size)
        buf.push_uint_var(size)
        buf.push_bytes(data)
        self._datagram = None

    def _write_windows(self, builder: QuicPacketBuilder) -> None:
        while self._widened and builder.remaining_flight_space >= _MAX_STREAM_DATA_BYTES:
            stream_id, stream = self._widened.popitem()
            buf = builder.start_frame(
                QuicFrameType.MAX_STREAM_DATA,
                _MAX_STREAM_DATA_BYTES,
                self._on_max_stream_data_delivery,
                (stream,),
            )
            buf.push_uint_var(stream_id)
            buf.push_uint_var(stream.max_stream_data_local)

    def _write_streams(self, builder: QuicPacketBuilder) -> None:
        """Fill the packet from the queue, each stream in its turn."""
        ready, alive = self._ready, self._streams
        while ready:
            stream = ready[0]
            outcome = _Outcome.DONE
            if stream.stream_id in alive and not stream.is_blocked:
                if stream.receiver.stop_pending or stream.sender.reset_pending:
                    outcome = self._write_resets(builder, stream)
                elif not stream.sender.buffer_is_empty:
                    outcome = self._write_data(builder, stream)
            if outcome is _Outcome.FULL:
                return
            if outcome is _Outcome.MORE:
                ready.rotate(-1)  # it was cut: the others come first
            else:
                ready.popleft()
                self._queued.discard(stream)

    def _write_resets(self, builder: QuicPacketBuilder, stream: QuicStream) -> _Outcome:
        """RESET_STREAM and STOP_SENDING."""
        if builder.remaining_flight_space < _RESET_STREAM_BYTES + _STOP_SENDING_BYTES:
            return _Outcome.FULL
        if stream.sender.reset_pending:
            reset = stream.sender.get_reset_frame()
            buf = builder.start_frame(
                QuicFrameType.RESET_STREAM, _RESET_STREAM_BYTES, self._on_reset_delivery, (stream,)
            )
            buf.push_uint_var(reset.stream_id)
            buf.push_uint_var(reset.error_code)
            buf.push_uint_var(reset.final_size)
        if stream.receiver.stop_pending:
            stop = stream.receiver.get_stop_frame()
            buf = builder.start_frame(
                QuicFrameType.STOP_SENDING, _STOP_SENDING_BYTES, self._on_stop_delivery, (stream,)
            )
            buf.push_uint_var(stop.stream_id)
            buf.push_uint_var(stop.error_code)
        return _Outcome.DONE

    def _write_data(self, builder: QuicPacketBuilder, stream: QuicStream) -> _Outcome:
        """One STREAM frame, as large as packet and windows allow."""
        sender = stream.sender
        stream_id: int = stream.stream_id  # type: ignore[assignment]
        pending = sender._pending
        if len(pending):
            first = pending[0]
            offset, size = first.start, first.stop - first.start
        else:
            offset, size = sender._buffer_stop, 0
        header = _STREAM_FIXED_BYTES + size_uint_var(stream_id)
        if offset:
            header += size_uint_var(offset)
        room = builder.remaining_flight_space - header
        if room < size and room < _SPLIT_FROM_BYTES:
            return _Outcome.FULL
        sent_up_to = sender.highest_offset
        window = sent_up_to + self._remote_max_data - self._remote_max_data_used
        piece = _piece(sender, offset, size, room, min(stream.max_stream_data_remote, window))
        if piece is None:
            return _Outcome.DONE  # it waits for a window, and MAX_STREAM_DATA will wake it
        data, fin = piece
        length = len(data)
        # What `start_frame` does, a quarter of a small frame's cost. There is room: see above.
        packet: Any = builder._packet
        buf = builder._buffer
        packet.is_ack_eliciting = packet.in_flight = True
        packet.delivery_handlers.append(
            (self._on_stream_delivery, (stream, offset, offset + length, fin))
        )
        buf.push_uint_var(_STREAM_BASE | 2 | (4 if offset else 0) | fin)
        buf.push_uint_var(stream_id)
        if offset:
            buf.push_uint_var(offset)
        buf.push_uint16(0x4000 | length)
        buf.push_bytes(data)
        self._remote_max_data_used += sender.highest_offset - sent_up_to
        if len(pending) or sender._pending_eof:
            return _Outcome.MORE
        sender.buffer_is_empty = True
        return _Outcome.DONE


def _piece(
    sender: QuicStreamSender, offset: int, size: int, room: int, limit: int
) -> tuple[bytes, bool] | None:
    """Data from `offset` on, `size` of it in a row, and whether FIN follows; None when nothing may
    be sent. Most streams have little to say and all of it fits: `get_frame` in short."""
    stop = offset + size
    if size and size <= room and stop <= limit and len(sender._pending) == 1:
        start = sender._buffer_start
        data = bytes(sender._buffer[offset - start : stop - start])
        sender._pending.shift()
        if stop > sender.highest_offset:
            sender.highest_offset = stop
        if sender._buffer_fin == stop:
            sender._pending_eof = False
            return data, True
        return data, False
    frame = sender.get_frame(room, limit)
    return None if frame is None else (frame.data, frame.fin)


def _peek(buf: Buffer) -> int:
    """The stream id that a frame begins with."""
    start = buf.tell()
    stream_id: int = buf.pull_uint_var()
    buf.seek(start)
    return stream_id
