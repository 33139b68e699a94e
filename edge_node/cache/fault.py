"""What is wrong with a request that can only fail, as it is remembered."""

from __future__ import annotations

from msgspec import Struct

from topology.wire.chat import ChatError

_MOST_MESSAGE = 1024


class Fault(Struct, frozen=True):
    """The parts of a `ChatError`; an exception itself would gather tracebacks."""

    status: int
    message: str
    type: str
    code: str | None
    param: str | None

    @classmethod
    def of(cls, error: ChatError) -> Fault:
        return cls(error.status, error.message[:_MOST_MESSAGE], error.type, error.code, error.param)

    def error(self) -> ChatError:
        return ChatError(
            self.status, self.message, type=self.type, code=self.code, param=self.param
        )

    @property
    def size_bytes(self) -> int:
        return len(self.message.encode()) + len(self.code or "") + len(self.param or "")
