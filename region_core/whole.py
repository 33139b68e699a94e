"""A whole answer as it is kept: what it takes to give it again, from its beginning or behind any of
its tokens. Pure.

As bytes, for others to keep, it begins with a digest over its name and itself, so that whatever
comes back is what was kept under that name, or nothing.
"""

from __future__ import annotations

import hashlib
from array import array

import msgspec
from msgspec import Struct

from region_core.engine.base import FinishReason

FORMAT = 1
TAG_BYTES = 16
FUTURE_S = 5.0  # how far the clocks of a region's machines may be apart
_UNKNOWN = 2**32 - 1  # how much of the text stands after a token, where it came with others


class Whole(Struct, frozen=True, array_like=True):
    """`ids` and `ends` are arrays of 32 bits: the tokens, and how many characters of the text stand
    after each. What of the text is behind the last one came without a token. Times are the
    calendar's, in Unix seconds."""

    format: int
    made_s: float
    expires_s: float
    ids: bytes
    ends: bytes
    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int

    @property
    def size_bytes(self) -> int:
        return len(self.ids) + len(self.ends) + len(self.text.encode()) + 200

    def after(self, resume: tuple[int, ...]) -> list[tuple[int, tuple[int, ...], str]] | None:
        """What follows those tokens, in pieces as a sink is told of them; None where that is not
        known: the answer begins otherwise, or its text is not told apart there."""
        ids, ends = array("I", self.ids), array("I", self.ends)
        begin = len(resume)
        if tuple(ids[:begin]) != resume:
            return None
        start = ends[begin - 1] if begin else 0
        if start == _UNKNOWN:
            return None
        last = ends[-1] if ends else 0
        pieces = []
        if begin < len(ids):
            pieces.append((begin, tuple(ids[begin:]), self.text[start:last]))
        if last < len(self.text):
            pieces.append((len(ids), (), self.text[last:]))
        return pieces


class Recording:
    """Gathers an answer piece by piece, from its beginning."""

    __slots__ = ("_ends", "_ids", "_length", "_text", "sound")

    def __init__(self) -> None:
        self._ids = array("I")
        self._ends = array("I")
        self._text: list[str] = []
        self._length = 0
        self.sound = True

    def add(self, position: int, ids: tuple[int, ...], text: str) -> None:
        if position != len(self._ids) or not self.sound:
            self.sound = False
            return
        self._text.append(text)
        self._length += len(text)
        try:
            self._ids.extend(ids)
        except OverflowError:  # no model of ours has such tokens
            self.sound = False
            return
        if ids:
            self._ends.extend([_UNKNOWN] * (len(ids) - 1))
            self._ends.append(self._length)

    def whole(
        self,
        made_s: float,
        ttl_s: float,
        finish_reason: FinishReason,
        prompt_tokens: int,
        completion_tokens: int,
    ) -> Whole | None:
        """None where it is not all there."""
        if not self.sound or completion_tokens != len(self._ids):
            return None
        return Whole(
            FORMAT,
            made_s,
            made_s + ttl_s,
            self._ids.tobytes(),
            self._ends.tobytes(),
            "".join(self._text),
            finish_reason,
            prompt_tokens,
            completion_tokens,
        )


_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(Whole).decode


def encode(name: bytes, whole: Whole) -> bytes:
    payload = _pack(whole)
    return _tag(name, payload) + payload


def decode(name: bytes, kept: bytes) -> Whole | None:
    """None where it is not what was kept under `name`."""
    payload = kept[TAG_BYTES:]
    if kept[:TAG_BYTES] != _tag(name, payload):
        return None
    try:
        whole = _unpack(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    sound = whole.format == FORMAT and len(whole.ids) == len(whole.ends)
    return whole if sound and len(whole.ids) == 4 * whole.completion_tokens else None


def left_s(whole: Whole, wall_s: float) -> float:
    """How long it is still good: 0 when it is not. One from the future is not believed."""
    if wall_s < whole.made_s - FUTURE_S:
        return 0.0
    return max(0.0, min(whole.expires_s - wall_s, whole.expires_s - whole.made_s))


def _tag(name: bytes, payload: bytes) -> bytes:
    digest = hashlib.blake2b(name, digest_size=TAG_BYTES, person=b"tw-whole")
    digest.update(payload)
    return digest.digest()
