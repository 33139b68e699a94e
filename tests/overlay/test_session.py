"""Both state machines against a naive oracle, over arbitrary, also illegal, orders of frames."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.overlay.test_frames import cut
from topology.overlay.errors import OverlayProtocolError
from topology.overlay.frames import (
    Accept,
    Body,
    End,
    Failure,
    Frame,
    Relay,
    Relayed,
    Request,
    Skipped,
    Tokens,
    encode,
    encode_payload,
)
from topology.overlay.session import (
    Arrival,
    ClientSession,
    ResetCode,
    ServerSession,
    request_bytes,
    reset_code,
)

REQUEST = Request("id", "acme", "m", 1000, 3, 1, True)
SAMPLES: dict[str, Frame] = {
    "R": REQUEST,
    "B": Body(b"{}"),
    "A": Accept(0.0, 0.0, "r", "e"),
    "T": Tokens(0, (), "hello"),
    "E": End("stop", 1, 1, 0.0),
    "F": Failure("engine", "broke", 500, True),
    "s": Skipped(0x41, 3),
    "L": Relay("frankfurt", 1),
    "D": Relayed(b"8 bytes.", 30_000),
}
orders = st.text(alphabet="".join(SAMPLES), max_size=8)
sizes = st.lists(st.integers(1, 30), min_size=1, max_size=5)


def bytes_of(letters: str) -> bytes:
    return b"".join(
        encode_payload(0x41, b"abc") if letter == "s" else encode(SAMPLES[letter])  # type: ignore[arg-type]
        for letter in letters
    )


@given(orders, sizes, st.booleans())
def test_the_client_accepts_exactly_the_legal_answers(
    order: str, chunk_sizes: list[int], relay: bool
) -> None:
    session, got = ClientSession(relay=relay), ""
    names = {type(frame): letter for letter, frame in SAMPLES.items()}
    try:
        for chunk in cut(bytes_of(order), chunk_sizes):
            got += "".join(names[type(frame)] for frame in session.receive(chunk))
        session.finish()
    except OverlayProtocolError:
        legal = False
    else:
        legal = True
    plain = order.replace("s", "")
    assert legal == bool(re.fullmatch(r"[DF]" if relay else r"A?T*[EF]", plain))
    assert plain.startswith(got)
    if legal:
        assert got == plain
        assert session.ended


@given(orders, sizes)
def test_the_server_accepts_exactly_the_legal_requests(order: str, chunk_sizes: list[int]) -> None:
    session, arrival = ServerSession(), None
    chunks = cut(bytes_of(order), chunk_sizes) or [b""]
    try:
        for index, chunk in enumerate(chunks):
            assert arrival is None
            arrival = session.receive(chunk, fin=index == len(chunks) - 1)
    except OverlayProtocolError:
        arrival = None
    legal = {"RB": Arrival(REQUEST, b"{}"), "L": SAMPLES["L"]}
    assert arrival == legal.get(order.replace("s", ""))


@given(orders, st.booleans())
def test_the_server_sends_exactly_the_legal_answers(order: str, relay: bool) -> None:
    session, sent = ServerSession(), ""
    session.receive(bytes_of("L" if relay else "RB"), fin=True)
    for letter in order:
        if letter not in "ATEFD":
            continue
        expected = bool(re.fullmatch(r"[DF]" if relay else r"A?T*[EF]?", sent + letter))
        if not expected:
            with pytest.raises(OverlayProtocolError):
                session.send(SAMPLES[letter])  # type: ignore[arg-type]
            continue
        data, fin = session.send(SAMPLES[letter])  # type: ignore[arg-type]
        sent += letter
        assert data == bytes_of(letter)
        assert fin == (letter in "EFD")


@given(st.binary(max_size=200), sizes)
def test_garbage_raises_nothing_but_a_protocol_error(data: bytes, chunk_sizes: list[int]) -> None:
    client, server = ClientSession(), ServerSession()
    for end in (client.receive, lambda chunk: server.receive(chunk, False)):
        try:
            for chunk in cut(data, chunk_sizes):
                end(chunk)
        except OverlayProtocolError:
            pass


def test_tokens_may_not_go_back() -> None:
    session = ClientSession()
    session.receive(encode(Tokens(7, (1, 2, 3), "abc")))
    session.receive(encode(Tokens(10, (4,), "d")))
    with pytest.raises(OverlayProtocolError):
        session.receive(encode(Tokens(10, (4,), "d")))


def test_what_is_held_of_a_request_is_counted() -> None:
    session = ServerSession()
    data = request_bytes(REQUEST, b"b" * 5000)
    session.receive(data[:3000], False)
    assert 2900 < session.held_bytes <= 3000
    session.receive(data[3000:], False)
    assert session.held_bytes == 5000
    assert session.receive(b"", True) == Arrival(REQUEST, b"b" * 5000)


def test_a_body_above_the_servers_limit_is_refused_before_it_is_held() -> None:
    session = ServerSession(max_body_bytes=1000)
    with pytest.raises(OverlayProtocolError) as caught:
        session.receive(request_bytes(REQUEST, b"b" * 5000)[:100], False)
    assert reset_code(caught.value) is ResetCode.TOO_LARGE
    assert reset_code(OverlayProtocolError("order")) is ResetCode.PROTOCOL
