"""Random numbers by counter: the same seed and index give the same number, anywhere.

No state is kept, so a sequence that moves to another region, or another place in the batch,
goes on with the numbers it would have had.
"""

from __future__ import annotations

import hashlib

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1) with 53 random bits, for a 64-bit seed and an index >= 0.

    SplitMix64's output function over the seed's own stream (Steele, Lea, Flood 2014).
    """
    return (_mix(_mix(seed & _MASK) + _GOLDEN * (index + 1)) >> 11) * 2.0**-53


def seed_of(text: str) -> int:
    """A 64-bit seed for a request that names none: its id stays the same when it is retried."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _mix(z: int) -> int:
    z = (z + _GOLDEN) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)
