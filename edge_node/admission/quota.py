"""How many requests of a tenant this node admits: its part of the tenant's limit. Pure.

The director gives each node a rate (see `topology.quota`); a token bucket per tenant holds the
node to it. Nothing here waits: a request is admitted or told when to come back. A tenant without
a limit costs one look into a dictionary.

Where the limit counts tokens too, the node has the same part of these as of the requests. What a
request is thought to cost is taken when it goes to a region, and settled when it is over.

`now` is a monotonic time in seconds, the same clock for all calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from random import Random
from typing import Literal, TypeAlias

from edge_node.admission.limiter import BACK_S, TokenBucket
from runtime.errors import TradewindError
from runtime.metrics import Sample
from topology.directive import NONE, Directive
from topology.policy import QuotaPolicy
from topology.quota import FORGET_HOLDS, newcomer_rate
from topology.resources import RateLimit
from topology.snapshot import Snapshot

Standing: TypeAlias = Literal["confirmed", "floor", "newcomer"]

_RETRY_MAX_S = 60.0


class OverLimit(TradewindError):
    """The tenant has asked for more than it may. `retry_s`: when a try may succeed."""

    retryable = True

    def __init__(
        self, tenant: str, limit_per_s: float, retry_s: float, of: str = "requests"
    ) -> None:
        super().__init__(
            f"Rate limit reached for {tenant}: {limit_per_s:g} {of} per second in all."
            f" Please try again in {retry_s:.3g} s."
        )
        self.retry_s = retry_s


class Bucket:
    """A token bucket: `rate` tokens per second, at most `capacity`; a request takes one.

    It begins with a single token, so that a node that restarts has no burst to give again.
    """

    __slots__ = ("asked", "at", "capacity", "rate", "refused", "tokens")

    def __init__(self, rate: float, burst_s: float, now: float) -> None:
        self.asked = 0
        self.refused = 0
        self.tokens = 1.0
        self.at = now
        self.rate = 0.0
        self.capacity = 1.0
        self.set(rate, burst_s, now)

    def set(self, rate: float, burst_s: float, now: float) -> None:
        """Go by another rate from now on; what had been saved up stays, as far as it fits."""
        self._refill(now)
        self.rate = rate
        self.capacity = max(1.0, rate * burst_s)
        self.tokens = min(self.tokens, self.capacity)

    def take(self, now: float) -> float:
        """Take a token: 0. None is left: seconds until there is one."""
        self._refill(now)
        self.asked += 1
        if self.tokens >= 1.0:
            self.tokens -= 1.0
            return 0.0
        self.refused += 1
        if self.rate <= 0:
            return _RETRY_MAX_S
        return min(_RETRY_MAX_S, (1.0 - self.tokens) / self.rate)

    def turn_away(self) -> None:
        """One asked that something else keeps out."""
        self.asked += 1
        self.refused += 1

    def _refill(self, now: float) -> None:
        if now > self.at:
            self.tokens = min(self.capacity, self.tokens + (now - self.at) * self.rate)
            self.at = now
        elif now < self.at - BACK_S:
            self.at = now


class Quotas:
    """All limits of one node. As many buckets as the snapshot has tenants with a limit. `tokens`:
    those of tenants whose tokens count, for reading."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._limits: dict[str, RateLimit] = {}
        self._policy = QuotaPolicy()
        self._directive = NONE
        self._buckets: dict[str, Bucket] = {}
        self.tokens: dict[str, TokenBucket] = {}
        self._confirmed: float | None = None  # when a current replica last stood behind it
        self._since = 0.0  # when the directive was taken up
        self._falls_at = 0.0  # when the rates change for want of a confirmation
        self.standing: Standing = "newcomer"

    # What the control plane says

    def use(self, snapshot: Snapshot, now: float) -> None:
        """Follow the limits of a snapshot."""
        self._limits = {n: spec.limit for n, spec in snapshot.tenants.items() if spec.limit}
        self._policy = snapshot.policy.quota
        self._apply(now)

    def direct(self, directive: Directive, now: float) -> None:
        """Follow a directive, from disk or from a replica. It confirms nothing by itself: it may
        be a word that the director has taken back since. Where nothing was confirmed lately, only
        its floors count."""
        self._directive = directive
        self._since = now
        self._apply(now)

    def confirm(self, now: float) -> None:
        """A replica that follows the store has been heard for `SETTLE_S` without a break, up to
        now: whatever it had to say that is newer has arrived."""
        self._confirmed = now
        self._falls_at = now + self._policy.hold_s
        if self.standing != "confirmed":
            self._apply(now)

    # Requests

    def admit(self, tenant: str, now: float) -> None:
        """Count a request of `tenant`; raises `OverLimit`."""
        bucket = self._buckets.get(tenant)
        if bucket is None:
            return
        if now >= self._falls_at:
            self._apply(now)
            bucket = self._buckets[tenant]
        tokens = self.tokens.get(tenant)
        if tokens is not None:
            self._check(tenant, bucket, tokens, now)
        wait_s = bucket.take(now)
        if wait_s > 0:
            raise OverLimit(tenant, self._limits[tenant].requests_per_s, self._spread(wait_s))

    def charge(self, tenant: str, tokens: float) -> float:
        """A request of `tenant` goes to a region, and is thought to cost so much. What is charged
        is returned, for `settle`."""
        bucket = self.tokens.get(tenant)
        return bucket.take(tokens) if bucket is not None else 0.0

    def settle(self, tenant: str, charged: float, used: float) -> None:
        """It is over, and came to `used`."""
        bucket = self.tokens.get(tenant)
        if bucket is not None:
            bucket.take(used - charged)

    @property
    def asked(self) -> Mapping[str, int]:
        """Tenant with a limit -> requests that asked, ever, refused ones too."""
        return {tenant: bucket.asked for tenant, bucket in self._buckets.items()}

    def rate(self, tenant: str, now: float) -> float:
        """What this node admits of a tenant now, in requests per second; 0: it has no limit."""
        if now >= self._falls_at:
            self._apply(now)
        bucket = self._buckets.get(tenant)
        return bucket.rate if bucket is not None else 0.0

    def samples(self, now: float) -> Iterable[Sample]:
        if now >= self._falls_at:  # where nobody asks, nobody else looks
            self._apply(now)
        for tenant, bucket in self._buckets.items():
            labels = {"tenant": tenant}
            name = "tradewind_edge_quota_"
            yield Sample(name + "rate", "Requests/s admitted here.", bucket.rate, labels)
            yield Sample(name + "asked_total", "Requests that asked.", bucket.asked, labels)
            yield Sample(name + "refused_total", "Answered with 429.", bucket.refused, labels)
        for tenant, tokens in self.tokens.items():
            labels = {"tenant": tenant}
            text = "Tokens/s admitted here."
            yield Sample("tradewind_edge_quota_tokens_rate", text, tokens.rate, labels)
            text = "Tokens saved up; below 0: owed."
            yield Sample("tradewind_edge_quota_tokens", text, tokens.tokens, labels)
        for standing in ("confirmed", "floor", "newcomer"):
            yield Sample(
                "tradewind_edge_quota_standing",
                "What the quotas rest on: a directive that is confirmed, its floors, or nothing.",
                self.standing == standing,
                {"standing": standing},
            )

    # Within

    def _check(self, tenant: str, bucket: Bucket, tokens: TokenBucket, now: float) -> None:
        wait_s = tokens.wait_s(now)
        if wait_s > 0:
            bucket.turn_away()
            limit = self._limits[tenant].tokens_per_s or 0.0
            raise OverLimit(tenant, limit, self._spread(wait_s), "tokens")

    def _spread(self, wait_s: float) -> float:
        """Those who are refused together shall not come back together."""
        return wait_s * (1.0 + self._rng.random())

    def _apply(self, now: float) -> None:
        """Set every bucket by what may be believed at `now`."""
        self._stand(now)
        for tenant in self._buckets.keys() - self._limits.keys():
            del self._buckets[tenant]
            self.tokens.pop(tenant, None)
        for tenant, limit in self._limits.items():
            rate = max(0.0, min(self._believed(tenant, limit), limit.requests_per_s))
            bucket = self._buckets.get(tenant)
            if bucket is None:
                self._buckets[tenant] = Bucket(rate, limit.burst_s, now)
            else:
                bucket.set(rate, limit.burst_s, now)
            self._apply_tokens(tenant, limit, rate / limit.requests_per_s, now)

    def _apply_tokens(self, tenant: str, limit: RateLimit, part: float, now: float) -> None:
        """`part`: of the limit, this node's."""
        if limit.tokens_per_s is None:
            self.tokens.pop(tenant, None)
            return
        rate = limit.tokens_per_s * part
        tokens = self.tokens.get(tenant)
        if tokens is None:
            self.tokens[tenant] = TokenBucket(rate, limit.burst_s, now)
        else:
            tokens.set(rate, limit.burst_s, now)

    def _stand(self, now: float) -> None:
        hold_s = self._policy.hold_s
        falls_at = None if self._confirmed is None else self._confirmed + hold_s
        silent_since = self._since if self._confirmed is None else self._confirmed
        forgotten_at = silent_since + hold_s * FORGET_HOLDS
        if self._directive is NONE:
            self.standing, self._falls_at = "newcomer", float("inf")
        elif falls_at is not None and now < falls_at:
            self.standing, self._falls_at = "confirmed", falls_at
        elif now < forgotten_at:
            self.standing, self._falls_at = "floor", forgotten_at
        else:
            self.standing, self._falls_at = "newcomer", float("inf")

    def _believed(self, tenant: str, limit: RateLimit) -> float:
        given = self._directive.quotas.get(tenant)
        if given is None or self.standing == "newcomer":
            return newcomer_rate(limit.requests_per_s, self._policy)
        if self.standing == "floor":
            return min(given, self._directive.floors.get(tenant, 0.0))
        return given
