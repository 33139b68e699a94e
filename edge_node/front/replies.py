"""Answers in the forms that clients ask for: whole, as JSON, or streamed, as SSE."""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct

from topology.overlay.frames import End
from topology.wire.chat import DONE, ChatRequest, ChunkEncoder, Usage, completion

Headers: TypeAlias = list[tuple[str, str]]

JSON: Headers = [("content-type", "application/json")]
EVENTS: Headers = [
    ("content-type", "text/event-stream; charset=utf-8"),
    ("cache-control", "no-cache"),
]


class Answer(Struct, frozen=True):
    """A whole answer, independent of the form it is sent in."""

    completion_id: str
    created_s: int
    model: str
    text: str
    finish_reason: str
    usage: Usage
    age_s: float = 0.0  # when it came: the region had it already

    @classmethod
    def of(cls, completion_id: str, created_s: int, model: str, text: str, end: End) -> Answer:
        usage = Usage.of(end.prompt_tokens, end.completion_tokens)
        reason = end.finish_reason
        return cls(completion_id, created_s, model, text, reason, usage, end.age_s)

    @property
    def size_bytes(self) -> int:
        """About what it takes to keep it, besides Python's own overhead."""
        return len(self.text.encode()) + len(self.completion_id) + len(self.model) + 256


def encode(answer: Answer, request: ChatRequest) -> bytes:
    """The body of the reply that `request` asked for."""
    if not request.stream:
        return completion(
            answer.completion_id,
            answer.created_s,
            answer.model,
            answer.text,
            answer.finish_reason,
            answer.usage,
        )
    events = ChunkEncoder(
        answer.completion_id, answer.created_s, answer.model, request.include_usage
    )
    text = events.text(answer.text) if answer.text else b""
    return events.role() + text + ending(events, request, answer.finish_reason, answer.usage)


def ending(events: ChunkEncoder, request: ChatRequest, reason: str, usage: Usage) -> bytes:
    """The last events of a stream."""
    tail = events.usage(usage) + DONE if request.include_usage else DONE
    return events.finish(reason) + tail
