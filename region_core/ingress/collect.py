"""A sink for an ingress that waits: what happened since one last looked."""

from __future__ import annotations

import asyncio

from msgspec import Struct

from region_core.engine.base import FinishReason
from region_core.job import Failed


class Outcome(Struct):
    """How a request ended."""

    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    failed: Failed | None = None


class Collector:
    """Gathers text until somebody takes it; bounded by the answer, which has a token limit."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._more = asyncio.Event()
        self.outcome: Outcome | None = None

    def accepted(self, queue_ms: float, load: float) -> None:
        """Nothing waits for this."""

    def tokens(self, position: int, ids: tuple[int, ...], text: str) -> None:
        if text:
            self._text.append(text)
            self._more.set()

    def end(
        self,
        finish_reason: FinishReason,
        prompt_tokens: int,
        completion_tokens: int,
        age_s: float | None = None,
    ) -> None:
        self.outcome = Outcome(finish_reason, prompt_tokens, completion_tokens)
        self._more.set()

    def failed(self, failed: Failed) -> None:
        self.outcome = Outcome(failed=failed)
        self._more.set()

    async def more(self) -> str:
        """The text that has come since the last call; empty only once there is an outcome."""
        while not self._text and self.outcome is None:
            self._more.clear()
            await self._more.wait()
        text = "".join(self._text)
        self._text.clear()
        return text

    async def whole(self) -> tuple[str, Outcome]:
        """All of the text, and how it ended."""
        parts = []
        while True:
            parts.append(await self.more())
            if self.outcome is not None and not self._text:
                return "".join(parts), self.outcome
