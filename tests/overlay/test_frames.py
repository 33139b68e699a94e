"""The codec: whatever is encoded comes back, in any chunks, and nothing else gets through."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topology.overlay import frames
from topology.overlay.errors import FrameTooLarge, OverlayProtocolError
from topology.overlay.frames import (
    MAX_PAYLOAD_BYTES,
    Accept,
    Body,
    End,
    Failure,
    FrameDecoder,
    FrameType,
    Request,
    Skipped,
    Tokens,
    encode,
    encode_payload,
)

names = st.text(max_size=40)
counts = st.integers(0, 2**40)
measures = st.floats(0, 1e9, allow_nan=False)
ids = st.lists(st.integers(0, 2**32), max_size=30).map(tuple)

requests = st.builds(
    Request, request_id=names, tenant=names, model=names, deadline_ms=counts,
    priority=st.integers(0, 7), attempt=st.integers(1, 9), stream=st.booleans(),
    resume_tokens=ids,
)  # fmt: skip
bodies = st.builds(Body, data=st.binary(max_size=300))
accepts = st.builds(Accept, queue_ms=measures, load=measures, region=names, engine=names)
tokens = st.builds(Tokens, position=counts, ids=ids, text=names)
ends = st.builds(
    End, finish_reason=st.sampled_from(["stop", "length"]), prompt_tokens=counts,
    completion_tokens=counts, load=measures,
)  # fmt: skip
failures = st.builds(
    Failure, code=st.sampled_from(["overloaded", "draining", "internal"]), message=names,
    status=st.integers(400, 599), retryable=st.booleans(), param=st.none() | names,
)  # fmt: skip
any_frame = requests | bodies | accepts | tokens | ends | failures


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """`data` in chunks of `sizes`, over and over."""
    chunks, at = [], 0
    while at < len(data):
        size = sizes[len(chunks) % len(sizes)]
        chunks.append(data[at : at + size])
        at += size
    return chunks


@given(st.lists(any_frame, max_size=8), st.lists(st.integers(1, 50), min_size=1, max_size=9))
def test_any_chunking_gives_the_same_frames(sent: list[frames.Frame], sizes: list[int]) -> None:
    data = b"".join(encode(frame) for frame in sent)  # type: ignore[arg-type]
    decoder = FrameDecoder()
    received = [frame for chunk in cut(data, sizes) for frame in decoder.feed(chunk)]
    assert received == sent
    assert decoder.idle
    assert FrameDecoder().feed(data) == sent


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_garbage_is_refused_or_decodes_but_never_breaks_anything_else(chunks: list[bytes]) -> None:
    decoder = FrameDecoder(max_payload_bytes=100)
    for chunk in chunks:
        try:
            decoder.feed(chunk)
        except OverlayProtocolError:
            return
        assert decoder.held_bytes <= 100 + 9


@given(any_frame, st.data())
def test_a_damaged_byte_never_raises_anything_but_a_protocol_error(
    frame: frames.Frame, data: st.DataObject
) -> None:
    good = bytearray(encode(frame))  # type: ignore[arg-type]
    at = data.draw(st.integers(0, len(good) - 1))
    good[at] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(OverlayProtocolError):
        FrameDecoder().feed(bytes(good))


@pytest.mark.parametrize("size", [0, 1, 63, 64, 16383, 16384, 70_000, MAX_PAYLOAD_BYTES])
def test_lengths_at_the_edges_of_a_varint(size: int) -> None:
    payload = b"x" * size
    assert FrameDecoder().feed(encode(Body(payload))) == [Body(payload)]


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_a_length_may_use_more_bytes_than_it_needs(width: int) -> None:
    prefix = {1: 0, 2: 1, 4: 2, 8: 3}[width]
    length = (5 | prefix << (8 * width - 2)).to_bytes(width, "big")
    assert FrameDecoder().feed(b"\x02" + length + b"hello") == [Body(b"hello")]


def test_a_frame_above_the_limit_is_refused_from_its_header_alone() -> None:
    with pytest.raises(FrameTooLarge):
        encode(Body(b"x" * (MAX_PAYLOAD_BYTES + 1)))
    with pytest.raises(FrameTooLarge):
        FrameDecoder().feed(b"\x02" + (MAX_PAYLOAD_BYTES + 1 | 2 << 30).to_bytes(4, "big"))
    with pytest.raises(FrameTooLarge):
        FrameDecoder().feed(b"\x02" + (2**61 | 3 << 62).to_bytes(8, "big"))


@pytest.mark.parametrize("number", [0, 9, 0x20, 0x3F])
def test_an_unknown_type_below_0x40_is_an_error_from_its_first_byte(number: int) -> None:
    with pytest.raises(OverlayProtocolError):
        FrameDecoder().feed(bytes([number]))


@pytest.mark.parametrize("number", [0x40, 0x7F, 0xFF])
def test_an_unknown_type_from_0x40_on_is_skipped(number: int) -> None:
    data = encode_payload(number, b"later") + encode(Body(b"b"))
    assert FrameDecoder().feed(data) == [Skipped(number, 5), Body(b"b")]


def test_an_older_peer_ignores_a_field_that_was_added_at_the_end() -> None:
    payload = msgspec.msgpack.encode([1.0, 0.5, "singapore", "sim", 384, "a new field"])
    assert FrameDecoder().feed(encode_payload(FrameType.ACCEPT, payload)) == [
        Accept(1.0, 0.5, "singapore", "sim")
    ]


@pytest.mark.parametrize(
    ("number", "fields"),
    [
        (FrameType.REQUEST, ["id", "t", "m", -1, 3, 1, True]),
        (FrameType.REQUEST, ["id", "t", "m", 1, 8, 1, True]),
        (FrameType.REQUEST, ["i" * 257, "t", "m", 1, 3, 1, True]),
        (FrameType.ACCEPT, [float("nan"), 0.0, "r", "e"]),
        (FrameType.ACCEPT, [0.0, float("inf"), "r", "e"]),
        (FrameType.TOKENS, [0, ["x"], "text"]),
        (FrameType.TOKENS, [0, [1]]),
        (FrameType.END, ["because", 1, 1, 0.0]),
        (FrameType.ERROR, ["unheard", "m", 500, True]),
        (FrameType.ERROR, ["internal", "m", 200, True]),
        (FrameType.ERROR, {}),
    ],
)
def test_a_field_outside_its_range_is_refused(number: int, fields: object) -> None:
    with pytest.raises(OverlayProtocolError):
        FrameDecoder().feed(encode_payload(number, msgspec.msgpack.encode(fields)))


def test_text_that_is_not_utf8_is_refused() -> None:
    payload = msgspec.msgpack.encode([0, [1], "aa"]).replace(b"aa", b"\xff\xfe")
    with pytest.raises(OverlayProtocolError):
        FrameDecoder().feed(encode_payload(FrameType.TOKENS, payload))


@settings(max_examples=20)
@given(st.integers(1, 3000))
def test_a_large_body_in_small_chunks_takes_linear_time(size: int) -> None:
    decoder = FrameDecoder()
    data = encode(Body(b"b" * 200_000))
    received: list[frames.Frame] = []
    for chunk in cut(data, [size]):
        received += decoder.feed(chunk)
    assert received == [Body(b"b" * 200_000)]
