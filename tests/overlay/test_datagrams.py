"""DATAGRAM frames between two connections over a simulated network."""

from __future__ import annotations

import pytest
from aioquic.quic import events

from tests.overlay.pair import Pair
from tests.overlay.test_transport import Echo, ask
from topology.overlay.connection import OverlayConnection
from topology.overlay.probe import encode_echo, encode_probe

PROBE_BYTES, ECHO_BYTES = 34, 49  # on the wire, above UDP; docs/paths.md says so


class Answering:
    """A server that echoes each datagram, and what came back of it."""

    def __init__(self, pair: Pair) -> None:
        self.there: list[bytes] = []
        self.back: list[bytes] = []
        self._pair = pair
        pair.server.on_datagram = self._at_server
        pair.client.on_datagram = lambda data, now: self.back.append(data)

    def _at_server(self, data: bytes, now: float) -> None:
        self.there.append(data)
        self._pair.server.send_datagram(b"echo " + data)


def settle(pair: Pair) -> Pair:
    """Until nothing of the handshake is to be sent any more."""
    pair.run(1.0)
    for way in pair.datagrams:
        pair.datagrams[way] = 0
    return pair


def test_both_ends_announce_that_they_take_datagrams() -> None:
    pair = Pair().connect()
    assert pair.client.takes_datagrams
    assert pair.server.takes_datagrams


def test_a_probe_costs_three_packets_and_its_echo_carries_the_acknowledgement() -> None:
    pair = settle(Pair().connect())
    answering = Answering(pair)
    pair.client.send_datagram(b"one")
    began = pair.now
    pair.run(1.0, lambda: bool(answering.back))
    assert pair.now - began == pytest.approx(0.02, abs=0.001)
    assert (answering.there, answering.back) == ([b"one"], [b"echo one"])
    pair.run(1.0)
    assert pair.datagrams == {"client": 1, "server": 2}


def test_probes_and_echoes_have_the_sizes_that_are_documented() -> None:
    pair = settle(Pair().connect())

    def sizes(end: OverlayConnection) -> list[int]:
        return [len(data) for data, _ in end.datagrams_to_send(pair.now)]

    pair.client.send_datagram(encode_probe(7))
    [(probe, _)] = pair.client.datagrams_to_send(pair.now)
    assert len(probe) == PROBE_BYTES
    pair.server.receive_datagram(probe, ("client", 1), pair.now)
    pair.server.send_datagram(encode_echo(7, 8, 8, False))
    [echo] = sizes(pair.server)
    assert echo <= ECHO_BYTES


def test_a_datagram_is_sent_although_the_congestion_window_is_full() -> None:
    pair = settle(Pair().connect())
    answering = Answering(pair)
    pair._loss = 1.0  # nothing arrives from now on
    for _ in range(60):
        ask(pair.client, b"x" * 4000)
    pair.run(0.5)
    before = pair.datagrams["server"]
    assert pair.client._loss.bytes_in_flight > pair.client._loss.congestion_window - 1350
    for n in range(20):
        pair.client.send_datagram(b"%d" % n)
        pair.run(0.01)
    assert pair.datagrams["server"] - before >= 20
    assert pair.client._datagram is None
    pair._loss = 0.0
    pair.client.send_datagram(b"at last")
    pair.run(0.1, lambda: bool(answering.back))
    assert answering.there == [b"at last"]


def test_a_lost_datagram_is_not_sent_again_and_streams_are() -> None:
    pair = settle(Pair().connect())
    answering, echo = Answering(pair), Echo(pair)
    pair._loss = 1.0
    pair.client.send_datagram(b"lost")
    stream = ask(pair.client, b"data")
    pair.run(0.005)
    pair._loss = 0.0
    assert pair.run(5.0, lambda: stream in echo.done)
    pair.run(1.0)
    assert answering.there == []
    assert pair.client.seen().lost + pair.server.seen().lost <= 1


def test_only_the_newest_of_several_waiting_datagrams_is_sent() -> None:
    pair = settle(Pair().connect())
    answering = Answering(pair)
    assert pair.client.send_datagram(b"old")
    assert not pair.client.send_datagram(b"new")
    pair.run(1.0)
    assert answering.there == [b"new"]


def test_what_quic_knows_of_losses_is_what_the_network_did() -> None:
    pair = Pair(seed=3).connect()
    echo = Echo(pair)
    before_client, before_server = pair.client.seen(), pair.server.seen()
    pair.run(1.0)
    pair._loss = 0.1
    for _ in range(400):
        ask(pair.client, b"q" * 300)
        pair.run(0.005)
    pair._loss = 0.0
    assert pair.run(30.0, lambda: len(echo.done) == 400)
    after, server = pair.client.seen(), pair.server.seen()
    lost = after.lost - before_client.lost
    sent = lost + after.delivered - before_client.delivered
    assert 0.04 < lost / sent < 0.2
    for end, before in ((after, before_client), (server, before_server)):
        gone = end.expected - before.expected
        missing = gone - (end.received - before.received)
        assert 0.04 < missing / gone < 0.2


def test_an_older_peer_is_sent_none() -> None:
    pair = Pair()
    pair.server._configuration.max_datagram_frame_size = None
    pair.connect()
    assert not pair.client.takes_datagrams
    answered: list[int] = []

    def on_client(event: events.QuicEvent) -> None:
        if isinstance(event, events.PingAcknowledged):
            answered.append(event.uid)

    pair.on_client = on_client
    pair.client.send_ping(12)
    assert pair.run(1.0, lambda: answered == [12])
