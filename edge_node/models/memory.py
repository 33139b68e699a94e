"""An edge model that knows what it is told: for tests, and to show how one is written."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from edge_node.models.base import EdgeAnswer
from topology.wire.chat import ChatRequest


class MemoryModel:
    """Answers the questions that it knows (the text of the last message), and declines others.
    `takes_s`: how long an answer takes it; what does not fit into the time left it declines."""

    def __init__(self, name: str, answers: Mapping[str, str], takes_s: float = 0.0) -> None:
        self.name = name
        self._answers = dict(answers)
        self._takes_s = takes_s

    async def answer(self, request: ChatRequest, left_s: float) -> EdgeAnswer | None:
        text = self._answers.get(request.messages[-1].content)
        if text is None or self._takes_s > left_s:
            return None
        if self._takes_s:
            await asyncio.sleep(self._takes_s)
        words = text.split()
        most = len(words) if request.max_tokens is None else request.max_tokens
        given = words[:most]
        asked = sum(len(message.content.split()) for message in request.messages)
        reason = "stop" if len(given) == len(words) else "length"
        return EdgeAnswer(" ".join(given), reason, asked, len(given))  # type: ignore[arg-type]
