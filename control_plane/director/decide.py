"""One round of the director: from what it held and what is seen, what it holds next. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import Struct

from control_plane.directives.observed import Observed
from control_plane.directives.state import Outlook, State, next_number
from control_plane.director import pacing, quotas, shares
from control_plane.membership import verdict
from topology.snapshot import Snapshot

WORDS_EVERY_S = 5.0  # at most


class Decided(Struct, frozen=True):
    """`state` still bears the time and number of the one before: see `stamped`."""

    before: State
    state: State
    outlook: Outlook
    finished: dict[str, int]  # overrides whose paced restore is complete, and their revisions

    def stamped(self, term: int, replica: str, now_s: float) -> State | None:
        """The state to write; None where nothing changed and the same director goes on.

        What only words it in another way (figures in a note, in why a drain waits) is written
        every few seconds: it makes nobody do anything.
        """
        if term == self.before.term:
            age_s = now_s - self.before.at_s
            fresh = 0.0 <= age_s < WORDS_EVERY_S
            if self.state == self.before or (
                fresh and _same_but_for_words(self.state, self.before)
            ):
                return None
        number = next_number(self.before, now_s)  # the one that `quotas` gave to nodes
        return msgspec.structs.replace(
            self.state, term=term, director=replica, number=number, at_s=now_s
        )


def _same_but_for_words(state: State, before: State) -> bool:
    """Whether two states differ in nothing but words."""
    drains = {
        region: msgspec.structs.replace(drain, paused=held.paused)
        if (held := before.drains.get(region)) is not None and held.paused and drain.paused
        else drain
        for region, drain in state.drains.items()
    }
    return msgspec.structs.replace(state, notes=before.notes, drains=drains) == before


def decide(
    snapshot: Snapshot,
    state: State,
    observed: Observed,
    registered: Mapping[str, bool | None],
    now_s: float,
) -> Decided:
    """`registered`: region -> whether the registry knows a healthy core there; None: no say."""
    before = state
    seen = {
        node: {region: view.reachable for region, view in report.regions.items()}
        for node, report in observed.edges.items()
    }
    state = msgspec.structs.replace(
        state,
        verdicts=verdict.advance(state.verdicts, seen, registered, snapshot.policy.health, now_s),
    )
    spread = shares.advance(snapshot, state, observed, now_s)
    state = msgspec.structs.replace(state, shares=spread.shares, shed=spread.shed)
    pace = pacing.advance(snapshot, state, spread.outlook, now_s)
    state = msgspec.structs.replace(state, drains=pace.drains)
    given = quotas.advance(snapshot, state, observed, now_s)
    state = msgspec.structs.replace(
        state,
        quotas=given.quotas,
        numbers=given.numbers,
        absent=given.absent,
        notes=(*spread.notes, *pace.notes, *given.notes),
    )
    return Decided(before, state, spread.outlook, pace.finished)
