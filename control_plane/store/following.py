"""Follow everything under a prefix: list it, watch it, and begin again whenever that breaks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from random import Random

from control_plane.store.base import Change, Listing, Relisted, Store
from control_plane.store.errors import StoreUnavailable
from runtime import logs
from runtime.backoff import Backoff

log = logs.get("following")

RETRY_MIN_S, RETRY_MAX_S = 0.1, 2.0


async def follow(
    store: Store,
    prefix: str,
    relist: Callable[[Listing], None],
    apply: Callable[[Change], None],
    rng: Random,
    lost: Callable[[], None] | None = None,
) -> None:
    """Run until cancelled: `relist` is given everything, first and whenever the watch could not
    go on, and `apply` each change after it, in order.

    `lost` is called each time that following broke, before the next attempt. Whatever a callback
    raises is logged, and following begins anew with a listing.
    """
    backoff = Backoff(RETRY_MIN_S, RETRY_MAX_S, rng.random)
    while True:
        try:
            listing = await store.list(prefix)
            relist(listing)
            backoff.reset()
            async with contextlib.aclosing(store.watch(prefix, after=listing.revision)) as watch:
                async for item in watch:
                    if isinstance(item, Relisted):
                        relist(item.listing)
                    else:
                        apply(item)
            reason = "the watch ended"
        except StoreUnavailable as error:
            reason = str(error)
        except Exception as error:  # the process serves on with what it holds
            log.exception("following failed", prefix=prefix)
            reason = repr(error)
        if lost is not None:
            lost()
        delay_s = backoff.next_s()
        log.warning("not followed", prefix=prefix, reason=reason, retry_in_s=round(delay_s, 2))
        await asyncio.sleep(delay_s)
