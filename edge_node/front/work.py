"""An answer under way that others than the client who asked first may want.

The task of the first client reads it from the regions, and while it is alone nothing else happens
here. When another one comes, that task goes on for both of them, and from then on the first client
is one of an audience, whose deadline and leaving concern itself alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from edge_node.forward.attempts import Attempts
from edge_node.front import respond
from edge_node.front.audience import Audience, Origin
from edge_node.front.call import Call
from edge_node.front.event_stream import EventStream
from edge_node.front.recipient import Recipient
from edge_node.front.replies import Answer, Headers
from edge_node.inflight import Cause, Flight
from topology.wire.chat import ChatError, ChatRequest

if TYPE_CHECKING:
    from edge_node.front.sharing import Sharing

SHARED: Headers = [("x-tradewind-shared", "1")]


class Work:
    """`call` is the first client's while the task that reads the answer serves it, and None from
    when it has been served, or is to be served by somebody else."""

    __slots__ = (
        "_headers", "_owner", "attempts", "audience", "call", "created_s", "flight", "keys",
        "lingers", "name", "request", "shown",
    )  # fmt: skip

    def __init__(
        self,
        owner: Sharing,
        keys: tuple[object, ...],
        call: Call,
        request: ChatRequest,
        flight: Flight,
    ) -> None:
        self._owner = owner
        self.keys = keys
        self.call: Call | None = call
        self.name = call.own_id
        self.request = request
        self.flight = flight
        self.attempts: Attempts | None = None  # from when it may be sent to a region
        self.audience: Audience | None = None  # from when it is shared
        self.shown: EventStream | None = None  # of the first client
        self.created_s = 0  # when its first piece came; before that 0
        self.lingers = False
        flight.keeper = self

    @property
    def open(self) -> bool:
        """Whether more may join."""
        if self.flight.stopped:
            return False
        audience = self.audience
        return audience is None or len(audience.recipients) < self._owner.followers_max

    # By the task that reads it

    def begin(self, created_s: int, headers: Callable[[Headers, Attempts], Headers]) -> None:
        """Its first piece is here. `headers`: those of a reply of that kind, from there."""
        self.created_s = created_s
        self._headers = headers
        if self.audience is not None:
            self._begin(self.audience)

    def hold(self, _: str = "") -> None:
        """A piece has come, which this task sends to nobody."""
        if self.audience is not None and self.audience.recipients:
            self.audience.wake()

    def finish(self, answer: Answer) -> None:
        """It is whole."""
        if self.audience is not None:
            self.audience.finish(answer)

    def fail(self, error: ChatError) -> None:
        """There will be no more of it."""
        if self.audience is not None and not self.audience.over:
            self.audience.fail(error)

    # By those who want it too

    def join(self, recipient: Recipient, deadline: float) -> None:
        """Give it this answer, too."""
        audience = self.audience or self._share()
        if self.lingers:
            self._owner.wanted_again(self)
        if deadline > self.flight.deadline:
            self.flight.move(deadline)
        audience.add(recipient)

    def leave(self, recipient: Recipient) -> None:
        """It has been served, or waits no longer."""
        audience = self.audience
        assert audience is not None  # it has joined
        audience.remove(recipient)
        if audience.over:
            return
        if not audience.recipients:
            self._abandoned()
        elif recipient.call.own_id == self.name:
            self._owner.detached += 1

    def keep(self, cause: Cause) -> bool:
        """The first client, which is alone, waits no longer; or it is the deadline of the last of
        many, who is about to leave. See `Keeper`."""
        call, audience = self.call, self.audience
        if not self._owner.may_linger(self):
            return False
        if call is None:
            if cause is not Cause.DEADLINE or audience is None or not audience.recipients:
                return False
            self._owner.outlast(self)
            return True
        if cause is Cause.DEADLINE:
            audience = self._share()
            for first in audience.recipients:
                first.end(respond.stopped(cause))  # it leaves when it has told its client
        else:
            self.call = None
            call.hand_over()
            if self.shown is not None:
                self.shown.pass_to(self.hold).close()
            self._share()
            self._abandoned()
        return True

    def _abandoned(self) -> None:
        """Nobody waits for it."""
        if self._owner.may_linger(self):
            self._owner.linger(self)
        else:
            self.flight.stop(Cause.DISCONNECT)

    # From one client to an audience

    def _share(self) -> Audience:
        """An audience, with the first client in it unless that is served already."""
        loop = asyncio.get_running_loop()
        audience = self.audience = Audience(loop)
        if self.created_s:
            self._begin(audience)
        self.flight.detach()
        if self.call is not None:
            audience.add(self._seat(self.call, loop))
        return audience

    def _seat(self, call: Call, loop: asyncio.AbstractEventLoop) -> Recipient:
        """The first client, as one of many from now on."""
        recipient = Recipient(call.hand_over(), self.request, loop)
        if self.shown is not None:
            assert self.attempts is not None  # it has given what is shown
            recipient.shown = self.shown.pass_to(self.hold)
            recipient.position = len(self.attempts.text)
        call.successor = loop.create_task(self._owner.serve(self, recipient, self.flight.deadline))
        self.call = None
        return recipient

    def _begin(self, audience: Audience) -> None:
        attempts = self.attempts
        assert attempts is not None  # it has given the first piece
        attempts.show()
        headers = partial(_headers_of, self._headers, attempts)
        audience.begin(Origin(self.name, self.created_s, attempts.model, attempts.text, headers))


def _headers_of(
    headers: Callable[[Headers, Attempts], Headers], attempts: Attempts, kind: Headers
) -> Headers:
    return [*headers(kind, attempts), *SHARED]
