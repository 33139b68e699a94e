"""An answer as bytes, for the disk, with everything that is needed to disbelieve it. Pure.

The name says what the answer depends on: the tenant, the model, the model's epoch and a digest of
what was asked. What is kept under it begins with a digest over name and content, so that no
mix-up, collision or damage ever gives an answer to another question, or another tenant's.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from edge_node.cache.check import TAG_BYTES, tag
from edge_node.cache.key import AnswerKey
from edge_node.front.replies import Answer
from topology.wire.chat import Usage

FORMAT = 1
MAX_NAME_BYTES = 480  # LMDB takes 511; an index puts a sequence number before it
FUTURE_S = 5.0  # how far clocks of one machine may have been set back since
_SEPARATOR = b"\0"


class Stored(Struct, frozen=True, array_like=True):
    """Times are the calendar's, in Unix seconds."""

    format: int
    written_s: float
    expires_s: float
    completion_id: str
    created_s: int
    model: str
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(Stored).decode


def name_of(key: AnswerKey) -> bytes | None:
    """None where it cannot be kept on disk."""
    tenant, model, epoch, digest = key
    name = _SEPARATOR.join((tenant.encode(), model.encode(), epoch + digest))
    return name if len(name) <= MAX_NAME_BYTES else None


def encode(name: bytes, answer: Answer, written_s: float, ttl_s: float) -> bytes:
    """What is kept under `name`."""
    usage = answer.usage
    payload = _pack(
        Stored(
            FORMAT,
            written_s,
            written_s + ttl_s,
            answer.completion_id,
            answer.created_s,
            answer.model,
            answer.text,
            answer.finish_reason,
            usage.prompt_tokens,
            usage.completion_tokens,
        )
    )
    return tag(name, payload) + payload


def decode(name: bytes, kept: bytes | memoryview) -> Stored | None:
    """None where it is not what was kept under `name`."""
    payload = kept[TAG_BYTES:]
    if kept[:TAG_BYTES] != tag(name, payload):
        return None
    try:
        stored = _unpack(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None  # another version's, whose format has the same place
    return stored if stored.format == FORMAT else None


def left_s(stored: Stored, wall_s: float, late_s: float) -> float | None:
    """How long it is still good: below 0 past its end, None when it is not to be used at all.

    One from the future is not believed: the clock was wrong when it was written, or is so now.
    """
    if not stored.written_s - FUTURE_S <= wall_s < stored.expires_s + late_s:
        return None
    return min(stored.expires_s - wall_s, stored.expires_s - stored.written_s)


def answer_of(stored: Stored) -> Answer:
    return Answer(
        stored.completion_id,
        stored.created_s,
        stored.model,
        stored.text,
        stored.finish_reason,
        Usage.of(stored.prompt_tokens, stored.completion_tokens),
    )
