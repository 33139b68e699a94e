"""The gRPC Admin service: authorise, bound, call, and map errors. No decisions."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from control_plane.admin import access, edge_ladder, edge_paths, errors, messages
from control_plane.admin.explain import Question, explain
from control_plane.admin.status import Now, status
from control_plane.admin.status_sources import NO_SOURCES, RolloutSource, StatusSources
from control_plane.catalog import Catalog
from control_plane.changes.apply import Changes
from control_plane.changes.archive import LIMIT_MAX
from control_plane.changes.overrides import Order, clear_override, set_override
from control_plane.changes.plan import Plan, Wanted
from control_plane.discovery.server import DiscoveryServer
from control_plane.peers import principal_of_call
from control_plane.store.base import Store
from runtime import logs
from runtime.clock import Clock
from runtime.errors import TradewindError
from runtime.identity import Principal
from topology.directive import NONE, Directive
from topology.errors import UnknownName
from topology.geo import Locator
from topology.resources import KINDS
from topology.wire.gen.tradewind.v1 import admin_pb2 as pb
from topology.wire.gen.tradewind.v1 import admin_pb2_grpc

log = logs.get("admin")

LONGEST_CALL_S = 20.0
HISTORY_SHOWN = 50  # entries, where nothing else is asked for

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
        sources: StatusSources = NO_SOURCES,
    ) -> None:
        self._replica = replica
        self._store = store
        self._catalog = catalog
        self._changes = changes
        self._discovery = discovery
        self._locator = locator
        self._clock = clock
        self._sources = sources
        self._started_s = clock.wall()

    async def Apply(self, request: pb.ApplyRequest, context: Any) -> pb.ApplyResponse:  # noqa: N802
        async def call(author: Principal) -> pb.ApplyResponse:
            return await self._change(messages.wanted(request), request.dry_run, author)

        return await self._answer(context, "Apply", request, call)

    async def SetOverride(  # noqa: N802
        self, request: pb.SetOverrideRequest, context: Any
    ) -> pb.ApplyResponse:
        async def call(author: Principal) -> pb.ApplyResponse:
            order = Order(
                regions=tuple(request.regions),
                action=request.action,
                reason=request.reason,
                percent=request.percent if request.HasField("percent") else 100.0,
                expires_s=request.expires_s or None,
                over_s=request.over_s,
                deadline_s=request.deadline_s if request.HasField("deadline_s") else None,
                force=tuple(request.force),
            )
            held = await self._changes.resources()
            wanted = set_override(order, held, self._directive(), self._clock.wall())
            return await self._change(wanted, request.dry_run, author)

        return await self._answer(context, "SetOverride", request, call)

    async def ClearOverride(  # noqa: N802
        self, request: pb.ClearOverrideRequest, context: Any
    ) -> pb.ApplyResponse:
        async def call(author: Principal) -> pb.ApplyResponse:
            wanted = clear_override(
                tuple(request.regions),
                request.reason,
                await self._changes.resources(),
                self._directive(),
                self._clock.wall(),
                over_s=request.over_s,
                force=tuple(request.force),
            )
            return await self._change(wanted, request.dry_run, author)

        return await self._answer(context, "ClearOverride", request, call)

    async def Rollback(  # noqa: N802
        self, request: pb.RollbackRequest, context: Any
    ) -> pb.ApplyResponse:
        async def call(author: Principal) -> pb.ApplyResponse:
            wanted = Wanted(
                force=tuple(request.force),
                reason=request.reason.strip() or f"rollback to revision {request.to_revision}",
                immediate=request.immediate,
            )
            to = request.to_revision
            if request.dry_run:
                return _dry(await self._changes.plan_rollback(to, wanted), author)
            done = await self._changes.roll_back(to, wanted, str(author), _allow(author))
            return messages.applied(done)

        return await self._answer(context, "Rollback", request, call)

    async def _change(self, wanted: Wanted, dry_run: bool, author: Principal) -> pb.ApplyResponse:
        if dry_run:
            return _dry(await self._changes.plan(wanted), author)
        return messages.applied(await self._changes.apply(wanted, str(author), _allow(author)))

    def _directive(self) -> Directive:
        """What the director last told every edge: where paced overrides stand."""
        directives = self._sources.directives
        return directives.directive_for("") if directives is not None else NONE

    async def History(  # noqa: N802
        self, request: pb.HistoryRequest, context: Any
    ) -> pb.HistoryResponse:
        async def call(_: Principal) -> pb.HistoryResponse:
            limit = min(request.limit or HISTORY_SHOWN, LIMIT_MAX)
            archive = self._changes.archive
            return messages.history(
                *await archive.page(limit, request.before_number, request.kind, request.name)
            )

        return await self._answer(context, "History", request, call)

    async def VerifyAudit(  # noqa: N802
        self, request: pb.VerifyAuditRequest, context: Any
    ) -> pb.VerifyAuditResponse:
        async def call(_: Principal) -> pb.VerifyAuditResponse:
            return messages.verified(await self._changes.archive.verify())

        return await self._answer(context, "VerifyAudit", request, call)

    async def GetRollout(self, request: pb.GetRolloutRequest, context: Any) -> pb.Rollout:  # noqa: N802
        async def call(_: Principal) -> pb.Rollout:
            return self._rollouts().status()

        return await self._answer(context, "GetRollout", request, call)

    async def ControlRollout(  # noqa: N802
        self, request: pb.ControlRolloutRequest, context: Any
    ) -> pb.Rollout:
        async def call(author: Principal) -> pb.Rollout:
            rollouts = self._rollouts()
            return await rollouts.control(request.action, request.reason, str(author))

        return await self._answer(context, "ControlRollout", request, call)

    def _rollouts(self) -> RolloutSource:
        if self._sources.rollouts is None:
            raise errors.NotServed("this replica knows nothing of rollouts")
        return self._sources.rollouts

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

        return await self._answer(context, "Get", request, call)

    async def Status(self, request: pb.StatusRequest, context: Any) -> pb.StatusResponse:  # noqa: N802
        async def call(_: Principal) -> pb.StatusResponse:
            return status(
                self._replica,
                self._store.status,
                self._catalog.view_now,
                self._discovery.sessions,
                self._sources,
                Now(self._clock.now(), self._clock.wall(), self._started_s),
            )

        return await self._answer(context, "Status", request, call)

    async def Explain(  # noqa: N802
        self, request: pb.ExplainRequest, context: Any
    ) -> pb.ExplainResponse:
        async def call(_: Principal) -> pb.ExplainResponse:
            view = self._catalog.view_now
            question = Question(
                request.client, request.tenant, request.model, request.name, request.edge
            )
            found = explain(
                view.snapshot, self._locator, question, self._clock.wall(), self._sources.told
            )
            return messages.explained(found, view)

        return await self._answer(context, "Explain", request, call)

    async def Paths(self, request: pb.PathsRequest, context: Any) -> pb.PathsResponse:  # noqa: N802
        async def call(_: Principal) -> pb.PathsResponse:
            if self._sources.paths is None:
                raise errors.NotServed("this replica takes no heartbeats")
            return edge_paths.answer(
                self._catalog.view_now.snapshot,
                self._sources.paths(),
                request.edge,
                request.region,
                self._clock.wall(),
            )

        return await self._answer(context, "Paths", request, call)

    async def Ladder(self, request: pb.LadderRequest, context: Any) -> pb.LadderResponse:  # noqa: N802
        async def call(_: Principal) -> pb.LadderResponse:
            if self._sources.ladders is None:
                raise errors.NotServed("this replica takes no heartbeats")
            return edge_ladder.answer(
                self._catalog.view_now.snapshot,
                self._sources.ladders(),
                request.edge,
                self._clock.wall(),
            )

        return await self._answer(context, "Ladder", request, call)

    async def _answer(
        self,
        context: Any,
        method: str,
        request: Any,
        call: Callable[[Principal], Awaitable[T]],
    ) -> T:
        """Authorise, bound by the caller's deadline and ours, and turn errors into statuses.

        What is logged of a refusal is the error, never the request: it may hold secrets, and so
        may a document with a mistake, of which only the places are logged.
        """
        remaining_s = context.time_remaining()
        limit_s = min(LONGEST_CALL_S, remaining_s if remaining_s is not None else LONGEST_CALL_S)
        try:
            principal = principal_of_call(context)
            access.check_call(principal, method, request)
            messages.check_reason(request)
            async with asyncio.timeout(limit_s):
                return await call(principal)
        except Exception as error:  # the request's outermost edge
            if isinstance(error, (TradewindError, TimeoutError)):
                reason = errors.for_log(error)
                log.info("refused", method=method, peer=context.peer(), reason=reason)
            else:
                log.exception("failed", method=method, peer=context.peer())
            code, message, detail = errors.to_status(error, self._store.status)
            await context.abort(code, message, errors.trailing_metadata(code, message, detail))
            raise


def _dry(plan: Plan, author: Principal) -> pb.ApplyResponse:
    """What would happen, and whether it is the caller's to do."""
    response = messages.planned(plan)
    try:
        access.check_change(author, plan)
    except errors.Denied as error:
        response.warnings.append(f"this change is not yours to make: {error.message}")
    return response


def _allow(author: Principal) -> Callable[[Plan], None]:
    return lambda plan: access.check_change(author, plan)
