"""Answers on disk, shared by the workers of one edge."""

from __future__ import annotations

from typing import Protocol

from edge_node.cache.key import AnswerKey
from edge_node.front.replies import Answer


class DiskTier(Protocol):
    """Answers that survive a restart. Nothing here raises, or waits for a disk."""

    def find(self, key: AnswerKey, late_s: float) -> tuple[Answer, float] | None:
        """An answer and how long it is still good, in seconds: below 0 where its time is over,
        which is so for less than `late_s`."""
        ...

    def keep(self, key: AnswerKey, answer: Answer, ttl_s: float) -> None:
        """Write it, soon."""
        ...

    def limit(self, max_bytes: int, share: float) -> None:
        """How much it may hold from now on, and a tenant of it."""
        ...
