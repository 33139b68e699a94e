"""Whatever a proxy asks, accepts and refuses, and whatever is published meanwhile: one response
per type is in flight, and in the end the proxy holds what it asked for and nothing else."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from control_plane.discovery.proxies.translation import (
    CLUSTER,
    ENDPOINTS,
    LISTENER,
    ROUTES,
    TYPES,
    Bundle,
)
from tests.discovery_proxies.peer import Peer, bundle
from tests.discovery_proxies.worlds import drain, resource, tenant

WORLDS = [
    bundle(),
    bundle(drain("singapore", 30)),
    bundle(tenant("acme", tier="batch", models=["smol"])),
    bundle(tenant("acme", residency=["EU"]), drain("dubai"), resource("Policy", "default")),
]
LAST = bundle(
    tenant("acme", tier="standard", models=["smol"]),
    tenant("late", tier="batch", residency=["AE"]),
    resource("Policy", "default", attempts=1),
    drain("frankfurt", 11),
)
NAMES = sorted({*LAST.clusters, *(name for w in WORLDS for name in w.clusters)})

steps = st.one_of(
    st.tuples(st.just("publish"), st.integers(0, len(WORLDS) - 1)),
    st.tuples(st.just("accept"), st.sampled_from(TYPES)),
    st.tuples(st.just("refuse"), st.sampled_from(TYPES)),
    st.tuples(st.just("ask"), st.sets(st.sampled_from(NAMES))),
    st.tuples(st.just("wait"), st.sampled_from([0.5, 3.0])),
)


class Run:
    """A peer, what is published, and the responses that it has yet to answer."""

    def __init__(self, *, delta: bool) -> None:
        self.peer = Peer(delta=delta)
        self.there = WORLDS[0]
        self.unanswered: dict[str, Any] = {}
        self.refused: set[str] = set()
        self.peer.ask(CLUSTER)
        self.peer.ask(LISTENER)
        self.peer.ask(ROUTES, "tradewind")
        self.receive()

    def receive(self) -> None:
        while (response := self.peer.next(self.there)) is not None:
            assert response.type_url not in self.unanswered
            self.unanswered[response.type_url] = response

    def step(self, what: str, argument: Any) -> None:
        if what == "publish":
            self.there = WORLDS[argument]
        elif what == "ask":
            self.peer.ask(ENDPOINTS, *sorted(argument))
        elif what == "wait":
            self.peer.now_s += argument
        elif argument in self.unanswered:
            response = self.unanswered.pop(argument)
            if what == "accept":
                self.peer.accept(response)
            else:
                self.refused.add(argument)
                self.peer.refuse(response)
        self.receive()

    def finish(self, there: Bundle) -> None:
        self.there = there
        self.peer.ask(ENDPOINTS, *NAMES)
        self.receive()
        for _ in range(50):
            if not self.unanswered:
                self.peer.now_s += 10
                self.receive()
            if not self.unanswered:
                return
            for url in list(self.unanswered):
                self.peer.accept(self.unanswered.pop(url))
            self.receive()
        raise AssertionError("it never ends")


@given(st.booleans(), st.lists(steps, max_size=40))
def test_in_the_end_the_proxy_holds_what_it_asked_for(
    delta: bool, script: list[tuple[str, Any]]
) -> None:
    run = Run(delta=delta)
    for what, argument in script:
        run.step(what, argument)
    run.finish(LAST)
    session = run.peer.session
    for url in (CLUSTER, ENDPOINTS, ROUTES):
        expected = {packed.value for packed in LAST.resources[url].values()}
        assert set(run.peer.held[url].values()) == expected, url
    if LISTENER not in run.refused:  # the same one is not offered twice
        assert session.nack is None
        assert session.acked_revision == LAST.revision
