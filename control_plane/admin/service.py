"""The gRPC Admin service: authorise, bound, call, and map errors. No decisions."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from control_plane.admin import errors, messages
from control_plane.admin.explain import Question, explain
from control_plane.catalog import Catalog
from control_plane.changes.apply import Changes
from control_plane.changes.overrides import clear_override, set_override
from control_plane.discovery.server import DiscoveryServer
from control_plane.peers import principal_of_call
from control_plane.store.base import Store
from runtime import logs
from runtime.clock import Clock
from runtime.errors import TradewindError
from runtime.identity import Principal
from topology.errors import UnknownName
from topology.geo import Locator
from topology.resources import KINDS
from topology.wire.gen.tradewind.v1 import admin_pb2 as pb
from topology.wire.gen.tradewind.v1 import admin_pb2_grpc

log = logs.get("admin")

ROLE = "operator"
LONGEST_CALL_S = 20.0

T = TypeVar("T")


class AdminService(admin_pb2_grpc.AdminServicer):
    """Serves one replica. Reads come from its catalog, so that they work without the store."""

    def __init__(
        self,
        replica: str,
        store: Store,
        catalog: Catalog,
        changes: Changes,
        discovery: DiscoveryServer,
        locator: Locator,
        clock: Clock,
    ) -> None:
        self._replica = replica
        self._store = store
        self._catalog = catalog
        self._changes = changes
        self._discovery = discovery
        self._locator = locator
        self._clock = clock
        self._started_s = clock.wall()

    async def Apply(self, request: pb.ApplyRequest, context: Any) -> pb.ApplyResponse:  # noqa: N802
        async def call(author: Principal) -> pb.ApplyResponse:
            wanted = messages.wanted(request)
            if request.dry_run:
                return messages.planned(await self._changes.plan(wanted))
            return messages.applied(await self._changes.apply(wanted, str(author)))

        return await self._answer(context, "Apply", call)

    async def SetOverride(  # noqa: N802
        self, request: pb.SetOverrideRequest, context: Any
    ) -> pb.ApplyResponse:
        async def call(author: Principal) -> pb.ApplyResponse:
            wanted = set_override(
                _one_region(request.regions),
                request.action,
                request.reason,
                request.percent or 100.0,
                request.expires_s or None,
                tuple(request.force),
                self._clock.wall(),
            )
            return messages.applied(await self._changes.apply(wanted, str(author)))

        return await self._answer(context, "SetOverride", call)

    async def ClearOverride(  # noqa: N802
        self, request: pb.ClearOverrideRequest, context: Any
    ) -> pb.ApplyResponse:
        async def call(author: Principal) -> pb.ApplyResponse:
            held = await self._changes.resources()
            wanted = clear_override(held, _one_region(request.regions), request.reason)
            return messages.applied(await self._changes.apply(wanted, str(author)))

        return await self._answer(context, "ClearOverride", call)

    async def Get(self, request: pb.GetRequest, context: Any) -> pb.GetResponse:  # noqa: N802
        async def call(_: Principal) -> pb.GetResponse:
            view = self._catalog.view_now
            response = pb.GetResponse(
                revision=view.snapshot.revision, stale_since_s=view.stale_since_s or 0.0
            )
            for kind in [request.kind] if request.kind else list(KINDS):
                held = view.snapshot.of_kind(kind)
                for name in sorted(held):
                    if not request.name or request.name == name:
                        response.resources.append(messages.resource_message(held[name]))
            if request.name and not response.resources:
                raise UnknownName(
                    f"no {request.kind or 'resource'} named {request.name!r}",
                    hint="`tradewind get` lists what there is",
                )
            return response

        return await self._answer(context, "Get", call)

    async def Status(self, request: pb.StatusRequest, context: Any) -> pb.StatusResponse:  # noqa: N802
        async def call(_: Principal) -> pb.StatusResponse:
            return messages.status(
                self._replica,
                self._store.status,
                self._catalog.view_now,
                self._discovery.sessions,
                self._clock.now(),
                self._clock.wall(),
                self._started_s,
            )

        return await self._answer(context, "Status", call)

    async def Explain(  # noqa: N802
        self, request: pb.ExplainRequest, context: Any
    ) -> pb.ExplainResponse:
        async def call(_: Principal) -> pb.ExplainResponse:
            view = self._catalog.view_now
            question = Question(
                request.client, request.tenant, request.model, request.name, request.edge
            )
            found = explain(view.snapshot, self._locator, question, self._clock.wall())
            return messages.explained(found, view)

        return await self._answer(context, "Explain", call)

    async def _answer(
        self, context: Any, method: str, call: Callable[[Principal], Awaitable[T]]
    ) -> T:
        """Authorise, bound by the caller's deadline and ours, and turn errors into statuses."""
        remaining_s = context.time_remaining()
        limit_s = min(LONGEST_CALL_S, remaining_s if remaining_s is not None else LONGEST_CALL_S)
        try:
            principal = _authorise(context)
            async with asyncio.timeout(limit_s):
                return await call(principal)
        except Exception as error:  # the request's outermost edge
            if isinstance(error, (TradewindError, TimeoutError)):
                log.info("refused", method=method, peer=context.peer(), reason=str(error))
            else:
                log.exception("failed", method=method, peer=context.peer())
            code, message, detail = errors.to_status(error, self._store.status)
            await context.abort(code, message, errors.trailing_metadata(code, message, detail))
            raise


def _authorise(context: Any) -> Principal:
    principal = principal_of_call(context)
    if principal.role != ROLE:
        raise errors.Denied(
            f"{principal} may not call the admin API",
            hint=f"use an identity with the role {ROLE}: "
            "`tradewind pki issue operator/<name>` makes one",
        )
    return principal


def _one_region(names: Sequence[str]) -> str:
    return names[0] if names else ""
