"""What we changed in aioquic's streams, over a simulated network that loses and reorders."""

from __future__ import annotations

import pytest
from aioquic.quic import events
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.overlay.pair import Pair
from topology.overlay.connection import OverlayConnection


class Echo:
    """Answers each stream with its data, twice; keeps what both ends saw."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.asked: dict[int, bytearray] = {}
        self.answers: dict[int, bytearray] = {}
        self.done: set[int] = set()
        self.resets: set[int] = set()
        pair.on_server = self.server
        pair.on_client = self.client

    def server(self, event: events.QuicEvent) -> None:
        if isinstance(event, events.StreamDataReceived):
            data = self.asked.setdefault(event.stream_id, bytearray())
            data += event.data
            self.pair.server.grant(event.stream_id, len(data) + 2**16)
            if event.end_stream and not self.pair.server.abandoned(event.stream_id):
                half = len(data) // 2
                self.pair.server.send_stream_data(event.stream_id, bytes(data[:half]))
                self.pair.server.send_stream_data(event.stream_id, bytes(data[half:]))
                self.pair.server.send_stream_data(event.stream_id, bytes(data), True)

    def client(self, event: events.QuicEvent) -> None:
        if isinstance(event, events.StreamDataReceived):
            data = self.answers.setdefault(event.stream_id, bytearray())
            data += event.data
            self.pair.client.grant(event.stream_id, len(data) + 2**16)
            if event.end_stream:
                self.done.add(event.stream_id)
        elif isinstance(event, events.StreamReset):
            self.resets.add(event.stream_id)


def ask(connection: OverlayConnection, data: bytes) -> int:
    stream_id = connection.get_next_available_stream_id()
    connection.send_stream_data(stream_id, data, True)
    return stream_id


def idle(end: OverlayConnection) -> bool:
    return not (end._streams or end._queued or end._ready or end._widened or end._streams_queue)


@settings(max_examples=40)
@given(
    st.integers(0, 2**32), st.sampled_from([0.0, 0.02, 0.2]), st.sampled_from([0.0, 0.03]),
    st.sampled_from([0.0, 0.1]), st.lists(st.integers(0, 40_000), min_size=1, max_size=30),
)  # fmt: skip
def test_every_byte_arrives_and_every_stream_is_forgotten(
    seed: int, loss: float, jitter_s: float, duplicates: float, sizes: list[int]
) -> None:
    pair = Pair(seed, loss, jitter_s, duplicates).connect()
    echo = Echo(pair)
    sent = {}
    for index, size in enumerate(sizes):
        data = bytes([index]) * size
        sent[ask(pair.client, data)] = data
        pair.run(0.001)
    assert pair.run(300, lambda: len(echo.done) == len(sizes))
    assert {k: bytes(v) for k, v in echo.answers.items()} == {k: v + v for k, v in sent.items()}
    assert pair.run(60, lambda: idle(pair.client) and idle(pair.server))


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.2]), st.data())
def test_abandoned_streams_are_forgotten_by_both_ends(
    seed: int, loss: float, data: st.DataObject
) -> None:
    pair = Pair(seed, loss, 0.01).connect()
    echo = Echo(pair)
    streams = [ask(pair.client, b"q" * 3000) for _ in range(20)]
    abandoned = set()
    for stream in streams:
        pair.run(data.draw(st.floats(0, 0.02)))
        if data.draw(st.booleans()):
            end = data.draw(st.sampled_from([pair.client, pair.server]))
            end.abandon(stream, 0x10)
            abandoned.add(stream)
    assert pair.run(300, lambda: idle(pair.client) and idle(pair.server))
    for stream in set(streams) - abandoned:
        assert bytes(echo.answers[stream]) == b"q" * 6000
    again = ask(pair.client, b"again")
    assert pair.run(30, lambda: again in echo.done)


def test_streams_beyond_the_limit_wait_and_then_go_in_order() -> None:
    pair = Pair(streams=8).connect()
    echo = Echo(pair)
    streams = [ask(pair.client, b"%d" % n) for n in range(100)]
    pair.client.abandon(streams[50], 0x10)  # not even opened yet
    assert pair.run(30, lambda: len(echo.done) == 99)
    assert max(len(echo.asked), 0) >= 99
    assert pair.run(10, lambda: idle(pair.client) and idle(pair.server))


def test_a_window_that_nobody_widens_stops_the_sender_and_only_that_stream() -> None:
    pair = Pair(window=20_000).connect()
    got: dict[int, int] = {}

    def server(event: events.QuicEvent) -> None:
        if isinstance(event, events.StreamDataReceived) and event.end_stream:
            pair.server.send_stream_data(event.stream_id, b"x" * 100_000, True)

    def client(event: events.QuicEvent) -> None:
        if isinstance(event, events.StreamDataReceived):
            got[event.stream_id] = got.get(event.stream_id, 0) + len(event.data)
            if event.stream_id == fast:
                pair.client.grant(fast, got[fast] + 20_000)

    pair.on_server, pair.on_client = server, client
    slow, fast = ask(pair.client, b"slow"), ask(pair.client, b"fast")
    assert pair.run(20, lambda: got.get(fast) == 100_000)
    pair.run(5)
    assert got[slow] == 20_000
    assert pair.server.unacknowledged_bytes(slow) == 80_000
    pair.client.grant(slow, 100_000)
    assert pair.run(5, lambda: got[slow] == 100_000)
    assert pair.run(5, lambda: idle(pair.client) and idle(pair.server))


@pytest.mark.parametrize("seed", range(30))
def test_a_lost_window_is_announced_again(seed: int) -> None:
    pair = Pair(seed, loss=0.3, window=16_384).connect()
    echo = Echo(pair)
    stream = ask(pair.client, b"w" * 60_000)
    assert pair.run(120, lambda: stream in echo.done)


def test_small_messages_share_packets() -> None:
    pair = Pair().connect()
    echo = Echo(pair)
    before = pair.datagrams["server"]
    streams = [ask(pair.client, b"m" * 100) for _ in range(36)]
    assert pair.run(5, lambda: len(echo.done) == len(streams))
    assert pair.datagrams["server"] - before < 12


def test_no_stream_starves_the_others() -> None:
    pair = Pair(delay_s=0.05).connect()
    echo = Echo(pair)
    bulk = ask(pair.client, b"b" * 2_000_000)
    pair.run(0.2)
    small = [ask(pair.client, b"s" * 200) for _ in range(20)]
    assert pair.run(60, lambda: set(small) <= echo.done)
    assert bulk not in echo.done


def test_the_server_may_not_open_streams_and_nobody_may_open_one_way_streams() -> None:
    for opener, is_unidirectional in (("server", False), ("server", True), ("client", True)):
        pair = Pair().connect()
        end = getattr(pair, opener)
        stream = end.get_next_available_stream_id(is_unidirectional)
        end.send_stream_data(stream, b"x", True)
        closed: list[int] = []
        other = pair.client if opener == "server" else pair.server
        pair.run(2)
        closed = [len(other._streams)]
        assert closed == [0]


@pytest.mark.parametrize("window", [1, 500])
def test_the_peers_connection_window_is_respected(window: int) -> None:
    pair = Pair().connect()
    echo = Echo(pair)
    pair.client._remote_max_data = pair.client._remote_max_data_used + window
    stream = ask(pair.client, b"d" * 3000)
    pair.run(2)
    assert len(echo.asked.get(stream, b"")) == window
    pair.client._remote_max_data += 10_000
    for waiting in list(pair.client._streams.values()):
        pair.client._wake(waiting)
    assert pair.run(5, lambda: stream in echo.done)


def test_the_key_changes_under_way() -> None:
    pair = Pair().connect()
    echo = Echo(pair)
    first = ask(pair.client, b"before")
    assert pair.run(5, lambda: first in echo.done)
    pair.client.request_key_update()
    second = ask(pair.client, b"after")
    assert pair.run(5, lambda: second in echo.done)


@pytest.mark.parametrize("loss", [0.0, 0.05])
def test_keys_change_by_themselves_over_and_over(loss: float) -> None:
    pair = Pair(5, loss, 0.005).connect()
    for end in (pair.client, pair.server):
        end.rekey_packets = 200
        end._rekey_at = 200
    echo = Echo(pair)
    for n in range(60):
        stream = ask(pair.client, b"%d" % n * 5000)
        assert pair.run(60, lambda stream=stream: stream in echo.done), n
    assert pair.client._rekey_at > 1000
    assert len(echo.done) == 60


def test_that_the_peer_has_closed_is_told_at_once() -> None:
    pair = Pair(delay_s=0.2).connect()
    pair.run(5.0)
    ends: list[tuple[float, events.ConnectionTerminated]] = []

    def note(event: events.QuicEvent) -> None:
        if isinstance(event, events.ConnectionTerminated):
            ends.append((pair.now, event))

    pair.on_client = note
    closed = pair.now
    pair.server.close(reason_phrase="shutting down")
    assert pair.run(5.0, lambda: bool(ends))
    [(at, event)] = ends
    assert event.reason_phrase == "shutting down"
    assert at - closed < 0.25  # half a round trip; aioquic alone would say so 1.3 s later
