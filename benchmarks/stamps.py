"""Tokens that say when they were made, for benchmarks of streaming.

A token is three characters: the monotonic clock, which all processes of a machine share, in steps
of 50 us modulo 13 s, in base 64. Whoever receives it knows how long it was under way.
"""

from __future__ import annotations

import time

CHARACTERS = 3
UNIT_S = 50e-6
_MODULUS = 64**CHARACTERS
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_VALUE = {letter: value for value, letter in enumerate(_ALPHABET)}


def now() -> bytes:
    """The token of this moment."""
    ticks = int(time.monotonic() / UNIT_S) % _MODULUS
    return bytes((_ALPHABET[ticks >> 12], _ALPHABET[ticks >> 6 & 63], _ALPHABET[ticks & 63]))


def age_s(token: bytes, at: float) -> float:
    """How old a token was `at` (monotonic seconds). Wrong by 13 s if it was older than that."""
    high, middle, low = token
    ticks = _VALUE[high] << 12 | _VALUE[middle] << 6 | _VALUE[low]
    return ((int(at / UNIT_S) - ticks) % _MODULUS) * UNIT_S


class Pace:
    """Fixed steps of `step_s`; one that is missed is left out."""

    def __init__(self, step_s: float) -> None:
        self.step_s = step_s
        self._due = 0.0

    def until_next_s(self) -> float:
        """How long the next step is away; it counts as taken."""
        at = time.monotonic()
        self._due = max(self._due + self.step_s, at)
        return self._due - at
