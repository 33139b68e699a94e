"""Tokens to text, piece by piece, up to a stop string.

The text given out after n tokens is a function of those n tokens alone: bytes that are only
part of a character are held back, and so is an ending that may yet turn out to be the
beginning of a stop string. So a stream can be continued elsewhere by feeding the tokens that
the client already has: what they gave out is known, what they held back is held back again.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence

_utf8 = codecs.getincrementaldecoder("utf-8")


class Detokeniser:
    """One answer's text. `stopped` once a stop string has appeared; nothing follows it."""

    __slots__ = ("_bytes_of", "_decode", "_held", "_stops", "stopped")

    def __init__(self, bytes_of: Callable[[int], bytes], stops: Sequence[str] = ()) -> None:
        self._bytes_of = bytes_of
        self._decode = _utf8(errors="replace").decode
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def feed(self, token: int) -> str:
        """The text that may be given out after this token; often one piece, sometimes none."""
        if self.stopped:
            return ""
        text = self._decode(self._bytes_of(token))
        if not self._stops:
            return text
        return self._release(self._held + text) if text else ""

    def finish(self) -> str:
        """What was held back, when the answer ends without a stop string.

        An unfinished character becomes U+FFFD.
        """
        if self.stopped:
            return ""
        text = self._decode(b"", True)
        if not self._stops:
            return text
        given = self._release(self._held + text)
        held, self._held = self._held, ""
        return given + held

    def _release(self, text: str) -> str:
        found = [at for at in (text.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)]
        keep = max(_overlap(text, stop) for stop in self._stops)
        cut = len(text) - keep
        self._held = text[cut:]
        return text[:cut]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest proper beginning of `stop` that `text` ends with."""
    for size in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
