"""Read a request's body within a bound."""

from __future__ import annotations

from typing import Any

from edge_node.errors import BodyTooLarge

MAX_LENGTH_DIGITS = 18


async def read(client: Any, declared: str | None, limit_bytes: int) -> bytes:
    """The whole body, or `BodyTooLarge` before more than `limit_bytes` of it are held.

    `client` is granian's protocol object, `declared` the Content-Length. How long the client
    may take is the business of the request's flight.
    """
    if declared is not None:
        if len(declared) > MAX_LENGTH_DIGITS or int(declared) > limit_bytes:
            raise BodyTooLarge(limit_bytes)
        body: bytes = await client()
        return body
    chunks: list[bytes] = []
    size = 0
    async for chunk in client:
        size += len(chunk)
        if size > limit_bytes:
            raise BodyTooLarge(limit_bytes)
        chunks.append(chunk)
    return b"".join(chunks)
