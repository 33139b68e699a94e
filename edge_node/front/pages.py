"""Everything that is not a chat: models, health, metrics, and what does not exist."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import msgspec
from msgspec import Struct

from edge_node.front import respond
from edge_node.front.call import Call
from edge_node.front.replies import JSON, Headers
from edge_node.serving import Serving
from runtime.errors import TradewindError
from runtime.metrics import CONTENT_TYPE
from topology.routing import Views, selects
from topology.wire.chat import ModelEntry

CHAT = "/v1/chat/completions"
MODELS = "/v1/models"

Reply: TypeAlias = tuple[int, Headers, bytes]


class Health(Struct):
    """The body of /readyz. `reasons` is empty when ready."""

    ready: bool
    edge: str
    revision: int
    regions: dict[str, bool]  # whether each is connected
    reasons: list[str]


def health(serving: Serving, views: Views, *, draining: bool) -> Health:
    """Whether this edge should be sent traffic, and if not, every reason."""
    reachable = {name for name, view in views.items() if view.reachable}
    regions = {name: name in reachable for name in serving.snapshot.regions}
    reasons = []
    if not serving.ready:
        reasons.append("no configuration has been received, and none was found on disk")
    elif not any(regions.values()):
        reasons.append("no region is connected")
    if serving.staleness.reason:
        reasons.append(serving.staleness.reason)
    if draining:
        reasons.append("this edge is shutting down")
    revision = serving.snapshot.revision
    return Health(not reasons, serving.edge, revision, regions, reasons)


class Pages:
    """Answers GET and HEAD; each page is made at once, without waiting for anything."""

    def __init__(
        self, serving: Serving, views: Callable[[], Views], expose: Callable[[], bytes]
    ) -> None:
        self._serving = serving
        self._views = views
        self._expose = expose
        self.draining = False
        self._pages: dict[str, Callable[[Call], Reply]] = {
            MODELS: self._models,
            "/healthz": self._alive,
            "/readyz": self._ready,
            "/metrics": self._metrics,
        }

    def serve(self, call: Call, method: str, path: str) -> None:
        """Answer the call, with an error where there is no such page."""
        try:
            status, headers, body = self._page(call, method, path)
        except TradewindError as error:
            call.fail_now(respond.chat_error(error))
            return
        call.reply(status, headers, b"" if method == "HEAD" else body)

    def _page(self, call: Call, method: str, path: str) -> Reply:
        page = self._pages.get(path)
        one_model = path.startswith(MODELS + "/") and path != MODELS + "/"
        if page is None and not one_model and path != CHAT:
            raise respond.unknown_url(method, path)
        if path == CHAT:
            raise respond.MethodNotAllowed(method, path, "POST")
        if method not in ("GET", "HEAD"):
            raise respond.MethodNotAllowed(method, path, "GET, HEAD")
        if page is None:
            return self._model(call, path.removeprefix(MODELS + "/"))
        return page(call)

    def _models(self, call: Call) -> Reply:
        return 200, JSON, self._serving.models_for(self._tenant(call))

    def _model(self, call: Call, name: str) -> Reply:
        spec = self._serving.snapshot.models.get(name)
        tenant = self._serving.snapshot.tenants[self._tenant(call)]
        if spec is None or not selects(tenant.models, name):
            raise respond.unknown_model(name)
        entry = ModelEntry(name, spec.created_s, spec.owned_by)
        return 200, JSON, msgspec.json.encode(entry)

    def _tenant(self, call: Call) -> str:
        self._serving.require_ready()
        return self._serving.keyring.tenant(call.headers.get("authorization"))

    def _alive(self, call: Call) -> Reply:
        return 200, JSON, b'{"alive":true}'

    def _ready(self, call: Call) -> Reply:
        found = health(self._serving, self._views(), draining=self.draining)
        return (200 if found.ready else 503), JSON, msgspec.json.encode(found)

    def _metrics(self, call: Call) -> Reply:
        return 200, [("content-type", CONTENT_TYPE)], self._expose()
