"""The words of one line of a story, read from the left. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from lab.wan import units

LONGEST_S = 60.0  # a story
_WORD = re.compile(r'"[^"]*"|\S+')


class Mistake(Exception):
    """On the line that is being read."""


class Rest:
    """The words of a line that have not been read yet; `form` is what the line should look like."""

    def __init__(self, words: list[str], form: str) -> None:
        self.words = list(words)
        self.form = form

    def word(self) -> str:
        if not self.words:
            raise Mistake(f"something is missing: {self.form}")
        return self.words.pop(0)

    def maybe(self, wanted: str) -> bool:
        if self.words and self.words[0] == wanted:
            self.words.pop(0)
            return True
        return False

    def literal(self, wanted: str) -> None:
        found = self.word()
        if found != wanted:
            raise Mistake(f"{wanted!r} is missing before {found!r}: {self.form}")

    def one_of(self, what: str, names: Sequence[str]) -> str:
        found = self.word()
        if found not in names:
            raise Mistake(f"no {what} {found!r}: there are {', '.join(names)}")
        return found

    def number(self, least: int, most: int) -> int:
        found = self.word()
        if not re.fullmatch(r"[0-9]{1,7}", found) or not least <= int(found) <= most:
            raise Mistake(f"{found!r} is no number from {least} to {most}: {self.form}")
        return int(found)

    def seconds(self) -> float:
        value = self.value(units.milliseconds) / 1000
        if value > LONGEST_S:
            raise Mistake(f"{value:g}s is longer than a story may be, {LONGEST_S:g}s")
        return value

    def value(self, parse: Callable[[str], float], text: str | None = None) -> float:
        try:
            return parse(self.word() if text is None else text)
        except ValueError as error:
            raise Mistake(str(error)) from error

    def end(self) -> None:
        if self.words:
            raise Mistake(f"too much: {' '.join(self.words)!r}; {self.form}")


def words_of(line: str) -> list[str]:
    """Words and quoted texts, up to a comment."""
    found = []
    for word in _WORD.findall(line):
        if word.startswith("#"):
            break
        found.append(word)
    return found


def among(names: Iterable[str]) -> str:
    return ", ".join(names)
