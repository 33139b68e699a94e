"""What has come of one answer, from however many regions, and what may come next. Pure.

A piece is tokens and the text that they add. Text may also come without tokens: all of a foreign
engine's does, and such an answer cannot be carried on by another; and what an engine held back
comes so behind its last token, which is the answer's tail.
"""

from __future__ import annotations

from topology.overlay.errors import OverlayProtocolError
from topology.overlay.frames import End, Tokens

# An answer's text may be this long for each token it may have: far more than any vocabulary has,
# so that a region gone mad cannot fill this process.
CHARACTERS_PER_TOKEN = 256


class Received:
    """Each method that takes something raises `OverlayProtocolError` where it cannot be, and has
    then changed nothing that the client could see."""

    __slots__ = (
        "_most_characters",
        "_most_tokens",
        "_owed",
        "_size",
        "_tail",
        "ids",
        "resumable",
        "text",
    )

    def __init__(self, most_tokens: int) -> None:
        self.ids: list[int] = []
        self.text: list[str] = []
        self.resumable = True  # another region may go on behind `ids`
        self._most_tokens = most_tokens
        self._most_characters = most_tokens * CHARACTERS_PER_TOKEN
        self._tail = ""
        self._owed = ""  # what a region that goes on behind the last token has yet to repeat of it
        self._size = 0  # of the text, in characters

    def take(self, frame: Tokens) -> bool:
        """Whether it is new to the client."""
        ids, known = frame.ids, self.ids
        if frame.position != len(known):
            raise OverlayProtocolError(
                f"tokens from {frame.position} on, where {len(known)} were known"
            )
        size = self._size + len(frame.text)
        if size > self._most_characters:
            raise OverlayProtocolError(f"an answer of {size} characters")
        if not ids:
            if not self._take_text(frame.text):
                return False
        elif self._tail:
            raise OverlayProtocolError("a token behind the end of the answer")
        elif len(known) + len(ids) > self._most_tokens:
            raise OverlayProtocolError(f"an answer of {len(known) + len(ids)} tokens")
        else:
            known.extend(ids)
        self._size = size
        self.text.append(frame.text)
        return True

    def check(self, end: End) -> None:
        """Whether that can be its end."""
        known = len(self.ids)
        if known and self.resumable and end.completion_tokens != known:
            raise OverlayProtocolError(f"an end after {end.completion_tokens} of {known} tokens")
        if self._owed:
            raise OverlayProtocolError("an end before the one that the client has")

    def goes_on(self) -> None:
        """Another region is about to go on behind `ids`."""
        self._owed = self._tail
        self._size = sum(map(len, self.text))

    def begin_anew(self) -> None:
        """Nobody has seen any of it, and it is not to be carried on."""
        self.ids.clear()
        self.text.clear()
        self._size = 0
        self._tail = ""
        self.resumable = True

    def _take_text(self, text: str) -> bool:
        if not text:
            self._size += 1  # or there would be no end of them
            return False
        if not self.ids:
            self.resumable = False
        elif not self._owed:
            self._tail += text
        elif self._owed.startswith(text):
            self._owed = self._owed[len(text) :]
            return False
        else:
            raise OverlayProtocolError("another end of the answer than the client has")
        return True
