"""Routes, in xDS's terms: from the tenant and the model that a request names to a cluster. Pure.

A request is sent somewhere only if its tenant is known: residency hangs on the tenant, and a
guess could send data where it must never be. Everything else gets an answer that says what is
wrong, in the form that clients of the API know.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from envoy.config.core.v3 import base_pb2
from envoy.config.route.v3 import route_components_pb2 as components
from envoy.config.route.v3 import route_pb2
from envoy.extensions.retry.host.previous_hosts.v3 import previous_hosts_pb2
from envoy.extensions.retry.priority.previous_priorities.v3 import (
    previous_priorities_config_pb2,
)
from envoy.type.matcher.v3 import http_inputs_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.wrappers_pb2 import UInt32Value
from xds.type.matcher.v3 import matcher_pb2

from control_plane.discovery.proxies.classes import Destination, Kind
from control_plane.discovery.proxies.node import Profile
from topology.demand import DemandClass
from topology.policy import PolicySpec
from topology.wire.chat import ChatError, error_body

NAME = "tradewind"  # of the listener and of its routes
TENANT = "x-tradewind-tenant"
MODEL = "x-tradewind-model"

# Only what no server has begun to answer: of `reset-before-request`, it has not even been sent.
RETRY_ON = "connect-failure,refused-stream,unavailable,reset-before-request"
_BACK_OFF_MS = 25
_BACK_OFF_MAX_MS = 250
_TOGETHER = 500  # tenants in one expression: what RE2 compiles within its usual memory

_TENANT_MISSING = ChatError(
    403,
    f"The request names no tenant: set the header {TENANT}.",
    type="permission_error",
    code="tenant_required",
)
_TENANT_UNKNOWN = ChatError(
    403,
    f"The tenant in {TENANT} is not known here.",
    type="permission_error",
    code="tenant_unknown",
)
_MODEL_MISSING = ChatError(
    400,
    f"The request names no model, and where it may go depends on that: set the header {MODEL}.",
    code="model_required",
)
_MODEL_UNKNOWN = ChatError(
    404, f"The model in {MODEL} does not exist.", code="model_not_found", param="model"
)
_NO_MODEL = ChatError(
    403, "This tenant may use no model.", type="permission_error", code="model_not_allowed"
)
_NOWHERE = {
    "model_not_allowed": ChatError(
        403,
        f"This tenant may not use the model in {MODEL}.",
        type="permission_error",
        code="model_not_allowed",
        param="model",
    ),
    "residency": ChatError(
        403,
        "No region that may serve this model lies within the tenant's residency.",
        type="permission_error",
        code="residency_not_satisfiable",
    ),
    "no_route": ChatError(
        503, "No route serves this model for this tenant.", type="server_error", code="no_route"
    ),
}


def routes_for(
    profile: Profile, kinds: dict[str, Kind], policy: PolicySpec
) -> route_pb2.RouteConfiguration:
    """`kinds`: what each tenant that the proxy may carry is allowed."""
    host = components.VirtualHost(name=NAME, domains=["*"])
    if policy.attempts > 1:
        host.retry_policy.CopyFrom(_retry_policy(profile, policy))
    if profile.tenant:
        host.routes.extend(_of_one(profile, kinds.get(profile.tenant)))
    elif profile.flavour == "grpc":
        host.routes.extend(_of_all(profile, kinds))
    else:
        host.matcher.CopyFrom(_tree(profile, kinds))
    return route_pb2.RouteConfiguration(name=NAME, virtual_hosts=[host])


def _of_one(profile: Profile, kind: Kind | None) -> Iterator[components.Route]:
    """A proxy of one tenant: its requests need not name it, and may name no other."""
    if kind is not None:
        for tenant in (_absent(TENANT), _equals(TENANT, profile.tenant)):
            yield from _of_kind(profile, kind, [tenant])
    yield _answer(_TENANT_UNKNOWN, [])


def _of_all(profile: Profile, kinds: dict[str, Kind]) -> Iterator[components.Route]:
    """One after the other, since gRPC knows no other way to match; so tenants that may do the
    same share their routes."""
    yield _answer(_TENANT_MISSING, [_absent(TENANT)])
    alike: dict[int, list[str]] = {}
    for tenant, kind in kinds.items():
        alike.setdefault(id(kind), []).append(tenant)
    for tenants in alike.values():
        for start in range(0, len(tenants), _TOGETHER):
            some = tenants[start : start + _TOGETHER]
            yield from _of_kind(profile, kinds[some[0]], [_one_of(TENANT, some)])
    yield _answer(_TENANT_UNKNOWN, [])


def _tree(profile: Profile, kinds: dict[str, Kind]) -> matcher_pb2.Matcher:
    """The tenant is looked up in a map, so that ten thousand of them cost no more than ten."""
    tree = matcher_pb2.Matcher()
    matching = tree.matcher_tree
    matching.input.name = "tenant"
    matching.input.typed_config.Pack(
        http_inputs_pb2.HttpRequestHeaderMatchInput(header_name=TENANT)
    )
    packed: dict[int, matcher_pb2.Matcher.OnMatch] = {}
    for tenant, kind in kinds.items():
        if id(kind) not in packed:
            packed[id(kind)] = _on_match(_of_kind(profile, kind, []))
        matching.exact_match_map.map[tenant].CopyFrom(packed[id(kind)])
    unmatched = (_answer(_TENANT_MISSING, [_absent(TENANT)]), _answer(_TENANT_UNKNOWN, []))
    tree.on_no_match.CopyFrom(_on_match(unmatched))
    return tree


def _on_match(routes: Iterable[components.Route]) -> matcher_pb2.Matcher.OnMatch:
    out = matcher_pb2.Matcher.OnMatch()
    out.action.name = "routes"
    out.action.typed_config.Pack(components.RouteList(routes=list(routes)))
    return out


def _of_kind(
    profile: Profile, kind: Kind, tenant: list[components.HeaderMatcher]
) -> Iterator[components.Route]:
    for model, destination in kind.destinations.items():
        match = [*tenant, _equals(MODEL, model)]
        yield _to(profile, kind, destination, match)
    if kind.only is not None:
        yield _to(profile, kind, kind.only, [*tenant, _absent(MODEL)])
    else:
        missing = _MODEL_MISSING if kind.classes else _NO_MODEL
        yield _answer(missing, [*tenant, _absent(MODEL)])
    yield _answer(_MODEL_UNKNOWN, tenant)


def _to(
    profile: Profile, kind: Kind, destination: Destination, match: list[components.HeaderMatcher]
) -> components.Route:
    if not isinstance(destination, DemandClass):
        return _answer(_NOWHERE[destination], match)
    deadline = Duration()
    deadline.FromMilliseconds(kind.deadline_ms)
    route = _route(match)
    route.route.cluster = str(destination)
    if profile.flavour == "grpc":
        route.route.max_stream_duration.max_stream_duration.CopyFrom(deadline)
    else:
        route.route.timeout.CopyFrom(deadline)
        route.route.idle_timeout.CopyFrom(deadline)
    return route


def _answer(error: ChatError, match: list[components.HeaderMatcher]) -> components.Route:
    """gRPC has no answers of its own in routes: it fails the call, which is what counts."""
    route = _route(match)
    route.direct_response.status = error.status
    route.direct_response.body.inline_bytes = error_body(error)
    header = route.response_headers_to_add.add()
    header.header.CopyFrom(base_pb2.HeaderValue(key="content-type", value="application/json"))
    header.append_action = base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
    return route


def _route(match: list[components.HeaderMatcher]) -> components.Route:
    return components.Route(match=components.RouteMatch(prefix="/", headers=match))


def _equals(header: str, value: str) -> components.HeaderMatcher:
    matcher = components.HeaderMatcher(name=header)
    matcher.string_match.exact = value
    return matcher


def _one_of(header: str, values: list[str]) -> components.HeaderMatcher:
    """`values` are names of resources: of what they may hold, only the dot means more."""
    if len(values) == 1:
        return _equals(header, values[0])
    matcher = components.HeaderMatcher(name=header)
    matcher.string_match.safe_regex.regex = "|".join(v.replace(".", "\\.") for v in values)
    return matcher


def _absent(header: str) -> components.HeaderMatcher:
    return components.HeaderMatcher(name=header, present_match=True, invert_match=True)


def _retry_policy(profile: Profile, limits: PolicySpec) -> components.RetryPolicy:
    retries = UInt32Value(value=limits.attempts - 1)
    policy = components.RetryPolicy(retry_on=RETRY_ON, num_retries=retries)
    policy.retry_back_off.base_interval.FromMilliseconds(_BACK_OFF_MS)
    policy.retry_back_off.max_interval.FromMilliseconds(_BACK_OFF_MAX_MS)
    if profile.flavour == "envoy":
        # A region that hangs: its endpoint is soon left out, before the tenant's deadline.
        policy.per_try_idle_timeout.FromMilliseconds(limits.first_token_timeout_ms)
        # Not where it just failed: another endpoint, and then another priority.
        policy.host_selection_retry_max_attempts = 5
        host = policy.retry_host_predicate.add(name="envoy.retry_host_predicates.previous_hosts")
        host.typed_config.Pack(previous_hosts_pb2.PreviousHostsPredicate())
        policy.retry_priority.name = "envoy.retry_priorities.previous_priorities"
        policy.retry_priority.typed_config.Pack(
            previous_priorities_config_pb2.PreviousPrioritiesConfig(update_frequency=1)
        )
    return policy
