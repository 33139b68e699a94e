"""Which answers under way may be shared, and by whom.

Two requests of one tenant share an answer while it is under way when they must have the same one
(the key of the cache: the whole question, whatever its form), or when one repeats the other: the
same id, given by the client, and the same body. Nobody shares with another tenant: each key begins
with the tenant's name. See docs/coalescing.md.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeAlias

from edge_node.front.call import Call
from edge_node.front.recipient import Recipient
from edge_node.front.work import Work
from edge_node.inflight import Flight
from runtime.metrics import Sample
from topology.snapshot import Snapshot
from topology.wire.chat import ChatRequest

FOLLOWERS_MAX = 100_000  # of one answer; the listener's limit of connections comes first
LINGERING_MAX = 256  # answers that nobody waits for

Serve: TypeAlias = Callable[[Work, Recipient, float], Coroutine[Any, Any, None]]


def repeat_of(given_id: str | None, spelling: tuple[str, bytes]) -> object | None:
    """Stands for a request and those that repeat it. `given_id`: by the client."""
    return None if given_id is None else (given_id, *spelling)


class Sharing:
    """Of one edge worker. `now` is the event loop's clock; `serve` serves a client that is not the
    task's own any more, until a deadline."""

    def __init__(self, now: Callable[[], float], serve: Serve) -> None:
        self._now = now
        self.serve = serve
        self._works: dict[object, Work] = {}
        self._linger_s = 0.0
        self._lingering: set[Work] = set()
        self.on = False
        self.followers_max = FOLLOWERS_MAX
        self.lingering_max = LINGERING_MAX
        self.coalesced = 0
        self.repeats = 0
        self.lingered = 0
        self.detached = 0

    def use(self, snapshot: Snapshot) -> None:
        policy = snapshot.policy
        self.on = policy.cache.coalesce and policy.overload.protect
        self._linger_s = policy.cache.linger_s

    def find(self, key: object | None, repeat: object | None) -> Work | None:
        """The work under way whose answer such a request may have."""
        works = self._works
        if repeat is not None:
            work = works.get(repeat)
            if work is not None and work.open:
                self.repeats += 1
                return work
        if key is not None:
            work = works.get(key)
            if work is not None and work.open:
                self.coalesced += 1
                return work
        return None

    def open(
        self,
        key: object | None,
        repeat: object | None,
        call: Call,
        request: ChatRequest,
        flight: Flight,
    ) -> Work | None:
        """The work that begins with this request, to be closed in any case; None where nobody
        could ever share it."""
        if not self.on:
            return None
        if key is None:
            if repeat is None:
                return None
            keys: tuple[object, ...] = (repeat,)
        else:
            keys = (key,) if repeat is None else (key, repeat)
        work = Work(self, keys, call, request, flight)
        for name in keys:
            self._works[name] = work
        return work

    def close(self, work: Work) -> None:
        """It is over: whoever comes now finds it no more."""
        works = self._works
        for name in work.keys:
            if works.get(name) is work:
                del works[name]
        self._lingering.discard(work)

    # By works

    def may_linger(self, work: Work) -> bool:
        """Whether it may go on for nobody. Not what waits still for its turn."""
        sent = work.attempts is not None and work.attempts.candidate is not None
        return self.on and sent and self._linger_s > 0 and len(self._lingering) < self.lingering_max

    def linger(self, work: Work) -> None:
        """It goes on for nobody, for a while: whoever asks again finds it."""
        work.lingers = True
        self._lingering.add(work)
        self.lingered += 1
        self.outlast(work)

    def outlast(self, work: Work) -> None:
        """Its clients' deadlines are not its own."""
        work.flight.move(self._now() + self._linger_s)

    def wanted_again(self, work: Work) -> None:
        """Somebody has asked again."""
        work.lingers = False
        self._lingering.discard(work)

    def samples(self) -> Iterable[Sample]:
        shared = sum(work.audience is not None for work in set(self._works.values()))
        name = "tradewind_edge_"
        for by, value in (("question", self.coalesced), ("id", self.repeats)):
            text = "Requests that were given another's answer under way."
            yield Sample(name + "coalesced_total", text, value, {"by": by})
        yield Sample(name + "shared", "Answers under way that were shared.", shared)
        yield Sample(
            name + "detached_total",
            "Answers whose first client left while others waited.",
            self.detached,
        )
        text = "Answers under way that nobody waits for."
        yield Sample(name + "lingering", text, len(self._lingering))
        yield Sample(name + "lingered_total", "Those that ever were.", self.lingered)
