"""One round of the director: from what it held and what is seen, what it holds next. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import Struct

from control_plane.director import pacing, quotas, shares
from control_plane.director.observed import Observed
from control_plane.director.state import Outlook, State, next_number
from control_plane.membership import verdict
from topology.snapshot import Snapshot


class Decided(Struct, frozen=True):
    """`state` still bears the time and number of the one before: see `stamped`."""

    before: State
    state: State
    outlook: Outlook
    finished: dict[str, int]  # overrides whose paced restore is complete, and their revisions

    def stamped(self, term: int, replica: str, now_s: float) -> State | None:
        """The state to write; None where nothing changed and the same director goes on."""
        if self.state == self.before and term == self.before.term:
            return None
        number = next_number(self.before, now_s)  # the one that `quotas` gave to nodes
        return msgspec.structs.replace(
            self.state, term=term, director=replica, number=number, at_s=now_s
        )


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
