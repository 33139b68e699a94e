"""How a stream of discovery begins and ends, whoever it is for: read, authorised, admitted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

from control_plane.admission import Admission, Shares
from control_plane.discovery.errors import NoAnswer, NotAllowed, StreamRefused, TooMany
from control_plane.peers import principal_of_call
from runtime.clock import Clock
from runtime.identity import IdentityError, Principal


async def first_request(requests: AsyncIterator[Any], timeout_s: float) -> Any:
    """Raises `NoAnswer` where none comes."""
    try:
        async with asyncio.timeout(timeout_s):
            return await anext(requests)
    except (TimeoutError, StopAsyncIteration) as error:
        raise NoAnswer("the stream began with no request") from error


def authorised(context: Any, roles: frozenset[str], hint: str = "") -> Principal:
    """Who calls. Raises `NotAllowed` unless that is one of `roles`."""
    try:
        principal = principal_of_call(context)
    except IdentityError as error:
        raise NotAllowed(str(error)) from error
    if principal.role not in roles:
        told = hint or f"roles: {', '.join(sorted(roles))}"
        raise NotAllowed(f"{principal} may not subscribe", hint=told)
    return principal


@asynccontextmanager
async def admitted(
    principal: Principal, shares: Shares, admission: Admission, clock: Clock
) -> AsyncIterator[None]:
    """Hold a place among the principal's streams, once it is its turn. Raises `TooMany`."""
    crowded = shares.arrive(str(principal), clock.now())
    if crowded:
        raise TooMany(crowded)
    try:
        wait_s = admission.reserve(clock.now())
        if wait_s is None:
            raise TooMany("too many nodes come at once", hint="try again, or another replica")
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        yield
    finally:
        shares.leave(str(principal))


async def end(
    context: Any, refusal: StreamRefused, principal: Principal, shares: Shares, gone: Awaitable[Any]
) -> None:
    """Tell a node why, and wait until it has read that (`gone`): until then it takes memory."""
    with shares.ending(str(principal)):
        try:
            await context.abort(refusal.code, str(refusal))
        finally:
            await gone
