"""When a region says when to try again, the client hears it."""

from __future__ import annotations

import pytest

from edge_node.errors import AttemptsExhausted
from edge_node.front.respond import chat_error, headers
from topology.overlay.errors import RegionFailure
from topology.overlay.frames import Failure


@pytest.mark.parametrize(
    ("told_ms", "expected"),
    [
        (2300, {"retry-after": "3", "retry-after-ms": "2300"}),
        (40, {"retry-after": "1", "retry-after-ms": "40"}),
        (None, {"retry-after": "1"}),
    ],
)
def test_retry_after(told_ms: int | None, expected: dict[str, str]) -> None:
    failure = Failure("overloaded", "full", 503, True, retry_after_ms=told_ms)
    error = AttemptsExhausted(RegionFailure("dubai", failure), ("dubai",), streaming=False)
    assert dict(headers(chat_error(error), http1=False)) == expected
