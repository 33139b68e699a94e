"""Is it of use to take a request on? Asked before it takes a place, and before its prefill.

A request that gets a slot at once is taken if its first token comes before its deadline; whether
its client wants an answer that the deadline may cut is the client's affair while slots are free.
One that would have to wait must be able to finish: the whole of an answer as long as answers are
lately, or as its `max_tokens` where that is less. Why the whole: when too much comes, the queue
fills up to what admission allows; had it allowed for half an answer, every answer would be cut.

An answer that goes on behind what its client has is not asked for its end: refused, it would be cut
here and now.

An engine with nothing to do refuses nobody: what was learnt may be wrong, and only work shows it.
"""

from __future__ import annotations

from msgspec import Struct

from region_core.scheduling.forecast import Estimate

LEAST_RETRY_S = 0.1
MOST_RETRY_S = 60.0
JITTER = 0.25  # of the time to drain, to either side


class Refusal(Struct, frozen=True):
    """It cannot be in time. `retryable`: it could be, where or when fewer wait."""

    reason: str  # "forecast" or "too_short"
    first_token_s: float
    left_s: float
    drain_s: float  # until those before it have their slots
    retryable: bool

    @property
    def message(self) -> str:
        if not self.retryable:
            return (
                f"The first token takes {self.first_token_s:.2g} s here with nobody before it, and "
                f"the request has {self.left_s:.2g} s left."
            )
        return (
            f"The region is full: the first token would come in about {self.first_token_s:.2g} s, "
            f"and the request has {self.left_s:.2g} s left."
        )


def refusal(estimate: Estimate, left_s: float, idle: bool, resumed: bool = False) -> Refusal | None:
    """Why a request with `left_s` to its deadline is not taken on; None: it is.

    `idle`: there is nothing before it, running or waiting.
    """
    if left_s <= 0:
        return Refusal("too_short", estimate.alone_s, 0.0, 0.0, False)
    if idle:
        return None
    if estimate.alone_s >= left_s:
        return Refusal("too_short", estimate.alone_s, left_s, estimate.wait_s, False)
    if estimate.wait_s <= 0 or resumed:
        needs_s = estimate.first_token_s
    else:
        needs_s = estimate.late_s + estimate.answer_s
    if needs_s < left_s:
        return None
    return Refusal("forecast", estimate.first_token_s, left_s, estimate.wait_s, True)


def useful_s(estimate: Estimate, deadline_s: float) -> float:
    """The last moment at which starting a request that waits is of use.

    Later than what admission asks: it was taken on, and half of an answer is better than none.
    """
    if estimate.wait_s <= 0:
        return deadline_s
    begins_s = max(0.0, estimate.first_token_s - estimate.wait_s)
    return deadline_s - begins_s - estimate.answer_s / 2


def retry_after_s(drain_s: float, draw: float) -> float:
    """When to try again: once those before it have their slots, give or take, so that those who
    were refused together do not come back together. `draw` is uniform in 0..1."""
    spread = 1 + JITTER * (2 * draw - 1)
    return min(MOST_RETRY_S, max(LEAST_RETRY_S, drain_s) * spread)
