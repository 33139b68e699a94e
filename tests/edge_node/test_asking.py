"""What a region is told of a user: the same for each request of theirs, in bounded memory."""

from __future__ import annotations

from typing import cast

from edge_node.forward.forwarder import Forwarder
from edge_node.front.asking import NAME_MOST, USERS_MOST, Asking
from edge_node.serving import Serving
from runtime.clock import ManualClock
from topology.cursor import cursor

WINDOW_S = 300.0


def test_users_that_clients_make_up_are_remembered_within_bounds() -> None:
    clock = ManualClock()
    asking = Asking(cast(Serving, None), cast(Forwarder, None), clock)
    names = [f"{number}".rjust(16) for number in range(2 * USERS_MOST)]
    names += [name.rjust(20 * NAME_MOST) for name in names[:100]]
    for name in names:
        place = asking._cursor("standard", "acme", name, WINDOW_S)
        assert place == cursor("standard", "acme", name, clock.wall(), WINDOW_S)
    held = sum(len(user) for _, _, user in asking._cursors)
    assert 0 < held <= USERS_MOST * NAME_MOST
    assert max(len(user) for _, _, user in asking._cursors) <= NAME_MOST
