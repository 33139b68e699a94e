"""What requests cost, in tokens of input and answer: estimated when they come, settled after. Pure.

A tenant's bucket is in the same coin: see `TokenBucket`.
"""

from __future__ import annotations

BYTES_PER_TOKEN = 4.0  # in English and code
ANSWER_TOKENS = 128.0  # while nothing is known of a model's
_MODELS_MOST = 1024
_TOKENS_MOST = 1 << 20
_NEWEST = 0.05  # the weight of one answer

DEBT_MOST_S = 60.0  # of its rate: what a bucket owes at most
BACK_S = 1.0  # a clock that goes back further has been set: time is counted from there


def prompt_tokens(body_bytes: int) -> float:
    """Of a request's body, roughly."""
    return body_bytes / BYTES_PER_TOKEN


class AnswerTokens:
    """How long answers are, for each name: moving means. Bounded."""

    __slots__ = ("_mean", "_names_most")

    def __init__(self, names_most: int = _MODELS_MOST) -> None:
        self._mean: dict[str, float] = {}
        self._names_most = names_most

    def add(self, name: str, tokens: int) -> None:
        if tokens > _TOKENS_MOST:  # whatever a region says
            tokens = _TOKENS_MOST
        mean = self._mean.get(name)
        if mean is not None:
            self._mean[name] = mean + _NEWEST * (tokens - mean)
        elif len(self._mean) < self._names_most:
            self._mean[name] = float(tokens)

    def cost(self, name: str, body_bytes: int, max_tokens: int | None = None) -> float:
        """Of one request, in tokens."""
        answer = self._mean.get(name, ANSWER_TOKENS)
        if max_tokens is not None and max_tokens < answer:
            answer = float(max_tokens)
        return body_bytes / BYTES_PER_TOKEN + answer


class TokenBucket:
    """A tenant's, at one node: `rate` tokens per second, `burst_s` of it saved up at most.

    A request is let in while the bucket is not empty, and takes all that it is thought to cost:
    so the last one may leave a debt, and what it came to is settled when it is over. No debt is
    larger than `DEBT_MOST_S` of the rate. In any `W` seconds: rate * (W + burst_s), and one
    request. It begins with next to nothing, so that a node that restarts has no burst to give.
    """

    __slots__ = ("at", "capacity", "rate", "tokens")

    def __init__(self, rate: float, burst_s: float, now: float) -> None:
        self.tokens = 1.0
        self.at = now
        self.rate = self.capacity = 0.0
        self.set(rate, burst_s, now)

    def set(self, rate: float, burst_s: float, now: float) -> None:
        """Go by another rate from now on; what was saved or is owed stays, as far as it fits."""
        self._refill(now)
        self.rate = rate
        self.capacity = max(1.0, rate * burst_s)
        self.tokens = min(self.tokens, self.capacity)
        self._bound()

    def wait_s(self, now: float) -> float:
        """0: a request may come in. Else seconds until one may."""
        self._refill(now)
        if self.tokens > 0:
            return 0.0
        if self.rate <= 0:
            return DEBT_MOST_S
        return min(DEBT_MOST_S, max(1e-3, (1.0 - self.tokens) / self.rate))

    def take(self, tokens: float) -> float:
        """Give back, where it is below 0. What was taken is returned: not all, at the bounds."""
        before = self.tokens
        self.tokens = min(self.capacity, before - tokens)
        self._bound()
        return before - self.tokens

    def _bound(self) -> None:
        self.tokens = max(self.tokens, -DEBT_MOST_S * self.rate)

    def _refill(self, now: float) -> None:
        if now > self.at:
            self.tokens = min(self.capacity, self.tokens + (now - self.at) * self.rate)
            self.at = now
        elif now < self.at - BACK_S:
            self.at = now
