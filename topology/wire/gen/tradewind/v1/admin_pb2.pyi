from topology.wire.gen.tradewind.v1 import membership_pb2 as _membership_pb2
from topology.wire.gen.tradewind.v1 import resource_pb2 as _resource_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PathsRequest(_message.Message):
    __slots__ = ("edge", "region")
    EDGE_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    edge: str
    region: str
    def __init__(self, edge: _Optional[str] = ..., region: _Optional[str] = ...) -> None: ...

class PathsResponse(_message.Message):
    __slots__ = ("edges", "unheard", "now_s", "omitted")
    EDGES_FIELD_NUMBER: _ClassVar[int]
    UNHEARD_FIELD_NUMBER: _ClassVar[int]
    NOW_S_FIELD_NUMBER: _ClassVar[int]
    OMITTED_FIELD_NUMBER: _ClassVar[int]
    edges: _containers.RepeatedCompositeFieldContainer[EdgePaths]
    unheard: _containers.RepeatedScalarFieldContainer[str]
    now_s: float
    omitted: int
    def __init__(self, edges: _Optional[_Iterable[_Union[EdgePaths, _Mapping]]] = ..., unheard: _Optional[_Iterable[str]] = ..., now_s: _Optional[float] = ..., omitted: _Optional[int] = ...) -> None: ...

class EdgePaths(_message.Message):
    __slots__ = ("node", "heard_s", "regions", "events")
    NODE_FIELD_NUMBER: _ClassVar[int]
    HEARD_S_FIELD_NUMBER: _ClassVar[int]
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    node: str
    heard_s: float
    regions: _containers.RepeatedCompositeFieldContainer[_membership_pb2.RegionSeen]
    events: _containers.RepeatedCompositeFieldContainer[_membership_pb2.PathEvent]
    def __init__(self, node: _Optional[str] = ..., heard_s: _Optional[float] = ..., regions: _Optional[_Iterable[_Union[_membership_pb2.RegionSeen, _Mapping]]] = ..., events: _Optional[_Iterable[_Union[_membership_pb2.PathEvent, _Mapping]]] = ...) -> None: ...

class LadderRequest(_message.Message):
    __slots__ = ("edge",)
    EDGE_FIELD_NUMBER: _ClassVar[int]
    edge: str
    def __init__(self, edge: _Optional[str] = ...) -> None: ...

class LadderResponse(_message.Message):
    __slots__ = ("edges", "unheard", "now_s", "omitted")
    EDGES_FIELD_NUMBER: _ClassVar[int]
    UNHEARD_FIELD_NUMBER: _ClassVar[int]
    NOW_S_FIELD_NUMBER: _ClassVar[int]
    OMITTED_FIELD_NUMBER: _ClassVar[int]
    edges: _containers.RepeatedCompositeFieldContainer[EdgeStanding]
    unheard: _containers.RepeatedScalarFieldContainer[str]
    now_s: float
    omitted: int
    def __init__(self, edges: _Optional[_Iterable[_Union[EdgeStanding, _Mapping]]] = ..., unheard: _Optional[_Iterable[str]] = ..., now_s: _Optional[float] = ..., omitted: _Optional[int] = ...) -> None: ...

class EdgeStanding(_message.Message):
    __slots__ = ("node", "heard_s", "standing")
    NODE_FIELD_NUMBER: _ClassVar[int]
    HEARD_S_FIELD_NUMBER: _ClassVar[int]
    STANDING_FIELD_NUMBER: _ClassVar[int]
    node: str
    heard_s: float
    standing: _containers.RepeatedCompositeFieldContainer[_membership_pb2.Standing]
    def __init__(self, node: _Optional[str] = ..., heard_s: _Optional[float] = ..., standing: _Optional[_Iterable[_Union[_membership_pb2.Standing, _Mapping]]] = ...) -> None: ...

class Key(_message.Message):
    __slots__ = ("kind", "name")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    kind: str
    name: str
    def __init__(self, kind: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class ApplyRequest(_message.Message):
    __slots__ = ("puts", "removes", "dry_run", "prune", "force", "reason", "immediate")
    PUTS_FIELD_NUMBER: _ClassVar[int]
    REMOVES_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    PRUNE_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    IMMEDIATE_FIELD_NUMBER: _ClassVar[int]
    puts: _containers.RepeatedCompositeFieldContainer[_resource_pb2.Resource]
    removes: _containers.RepeatedCompositeFieldContainer[Key]
    dry_run: bool
    prune: bool
    force: _containers.RepeatedScalarFieldContainer[str]
    reason: str
    immediate: bool
    def __init__(self, puts: _Optional[_Iterable[_Union[_resource_pb2.Resource, _Mapping]]] = ..., removes: _Optional[_Iterable[_Union[Key, _Mapping]]] = ..., dry_run: _Optional[bool] = ..., prune: _Optional[bool] = ..., force: _Optional[_Iterable[str]] = ..., reason: _Optional[str] = ..., immediate: _Optional[bool] = ...) -> None: ...

class ApplyResponse(_message.Message):
    __slots__ = ("revision", "applied", "changes", "refusals", "warnings", "forecast", "staged")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    REFUSALS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    FORECAST_FIELD_NUMBER: _ClassVar[int]
    STAGED_FIELD_NUMBER: _ClassVar[int]
    revision: int
    applied: bool
    changes: _containers.RepeatedCompositeFieldContainer[Change]
    refusals: _containers.RepeatedCompositeFieldContainer[Refusal]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    forecast: _containers.RepeatedCompositeFieldContainer[RegionForecast]
    staged: bool
    def __init__(self, revision: _Optional[int] = ..., applied: _Optional[bool] = ..., changes: _Optional[_Iterable[_Union[Change, _Mapping]]] = ..., refusals: _Optional[_Iterable[_Union[Refusal, _Mapping]]] = ..., warnings: _Optional[_Iterable[str]] = ..., forecast: _Optional[_Iterable[_Union[RegionForecast, _Mapping]]] = ..., staged: _Optional[bool] = ...) -> None: ...

class RegionForecast(_message.Message):
    __slots__ = ("region", "before_tokens_per_s", "after_tokens_per_s", "capacity_tokens_per_s", "known")
    REGION_FIELD_NUMBER: _ClassVar[int]
    BEFORE_TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    AFTER_TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    region: str
    before_tokens_per_s: float
    after_tokens_per_s: float
    capacity_tokens_per_s: float
    known: bool
    def __init__(self, region: _Optional[str] = ..., before_tokens_per_s: _Optional[float] = ..., after_tokens_per_s: _Optional[float] = ..., capacity_tokens_per_s: _Optional[float] = ..., known: _Optional[bool] = ...) -> None: ...

class Change(_message.Message):
    __slots__ = ("key", "action", "fields")
    class Action(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        ACTION_UNSPECIFIED: _ClassVar[Change.Action]
        ACTION_CREATE: _ClassVar[Change.Action]
        ACTION_UPDATE: _ClassVar[Change.Action]
        ACTION_DELETE: _ClassVar[Change.Action]
        ACTION_UNCHANGED: _ClassVar[Change.Action]
    ACTION_UNSPECIFIED: Change.Action
    ACTION_CREATE: Change.Action
    ACTION_UPDATE: Change.Action
    ACTION_DELETE: Change.Action
    ACTION_UNCHANGED: Change.Action
    KEY_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    key: Key
    action: Change.Action
    fields: _containers.RepeatedCompositeFieldContainer[FieldChange]
    def __init__(self, key: _Optional[_Union[Key, _Mapping]] = ..., action: _Optional[_Union[Change.Action, str]] = ..., fields: _Optional[_Iterable[_Union[FieldChange, _Mapping]]] = ...) -> None: ...

class FieldChange(_message.Message):
    __slots__ = ("path", "before", "after")
    PATH_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    path: str
    before: str
    after: str
    def __init__(self, path: _Optional[str] = ..., before: _Optional[str] = ..., after: _Optional[str] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("rule", "message")
    RULE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    rule: str
    message: str
    def __init__(self, rule: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class GetRequest(_message.Message):
    __slots__ = ("kind", "name")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    kind: str
    name: str
    def __init__(self, kind: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class GetResponse(_message.Message):
    __slots__ = ("resources", "revision", "stale_since_s")
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    STALE_SINCE_S_FIELD_NUMBER: _ClassVar[int]
    resources: _containers.RepeatedCompositeFieldContainer[_resource_pb2.Resource]
    revision: int
    stale_since_s: float
    def __init__(self, resources: _Optional[_Iterable[_Union[_resource_pb2.Resource, _Mapping]]] = ..., revision: _Optional[int] = ..., stale_since_s: _Optional[float] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusResponse(_message.Message):
    __slots__ = ("replica", "now_s", "store", "revision", "stale_since_s", "problems", "nodes", "started_s", "director", "replicas", "registry", "regions", "members", "rollout")
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    NOW_S_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    STALE_SINCE_S_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    STARTED_S_FIELD_NUMBER: _ClassVar[int]
    DIRECTOR_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    REGISTRY_FIELD_NUMBER: _ClassVar[int]
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    ROLLOUT_FIELD_NUMBER: _ClassVar[int]
    replica: str
    now_s: float
    store: StoreStatus
    revision: int
    stale_since_s: float
    problems: _containers.RepeatedScalarFieldContainer[str]
    nodes: _containers.RepeatedCompositeFieldContainer[NodeStatus]
    started_s: float
    director: DirectorStatus
    replicas: _containers.RepeatedScalarFieldContainer[str]
    registry: RegistryStatus
    regions: _containers.RepeatedCompositeFieldContainer[RegionStatus]
    members: _containers.RepeatedCompositeFieldContainer[MemberStatus]
    rollout: Rollout
    def __init__(self, replica: _Optional[str] = ..., now_s: _Optional[float] = ..., store: _Optional[_Union[StoreStatus, _Mapping]] = ..., revision: _Optional[int] = ..., stale_since_s: _Optional[float] = ..., problems: _Optional[_Iterable[str]] = ..., nodes: _Optional[_Iterable[_Union[NodeStatus, _Mapping]]] = ..., started_s: _Optional[float] = ..., director: _Optional[_Union[DirectorStatus, _Mapping]] = ..., replicas: _Optional[_Iterable[str]] = ..., registry: _Optional[_Union[RegistryStatus, _Mapping]] = ..., regions: _Optional[_Iterable[_Union[RegionStatus, _Mapping]]] = ..., members: _Optional[_Iterable[_Union[MemberStatus, _Mapping]]] = ..., rollout: _Optional[_Union[Rollout, _Mapping]] = ...) -> None: ...

class DirectorStatus(_message.Message):
    __slots__ = ("replica", "term", "since_s", "self", "state_s", "number", "notes")
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    SINCE_S_FIELD_NUMBER: _ClassVar[int]
    SELF_FIELD_NUMBER: _ClassVar[int]
    STATE_S_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    replica: str
    term: int
    since_s: float
    self: bool
    state_s: float
    number: int
    notes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self_, replica: _Optional[str] = ..., term: _Optional[int] = ..., since_s: _Optional[float] = ..., self: _Optional[bool] = ..., state_s: _Optional[float] = ..., number: _Optional[int] = ..., notes: _Optional[_Iterable[str]] = ...) -> None: ...

class RegistryStatus(_message.Message):
    __slots__ = ("backend", "available", "since_s", "detail")
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    AVAILABLE_FIELD_NUMBER: _ClassVar[int]
    SINCE_S_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    backend: str
    available: bool
    since_s: float
    detail: str
    def __init__(self, backend: _Optional[str] = ..., available: _Optional[bool] = ..., since_s: _Optional[float] = ..., detail: _Optional[str] = ...) -> None: ...

class RegionStatus(_message.Message):
    __slots__ = ("region", "up", "since_s", "why", "utilisation", "load_tokens_per_s", "capacity_tokens_per_s", "override_action", "override_percent", "override_target", "paused", "override_expires_s")
    REGION_FIELD_NUMBER: _ClassVar[int]
    UP_FIELD_NUMBER: _ClassVar[int]
    SINCE_S_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    UTILISATION_FIELD_NUMBER: _ClassVar[int]
    LOAD_TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    OVERRIDE_ACTION_FIELD_NUMBER: _ClassVar[int]
    OVERRIDE_PERCENT_FIELD_NUMBER: _ClassVar[int]
    OVERRIDE_TARGET_FIELD_NUMBER: _ClassVar[int]
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    OVERRIDE_EXPIRES_S_FIELD_NUMBER: _ClassVar[int]
    region: str
    up: bool
    since_s: float
    why: str
    utilisation: float
    load_tokens_per_s: float
    capacity_tokens_per_s: float
    override_action: str
    override_percent: float
    override_target: float
    paused: str
    override_expires_s: float
    def __init__(self, region: _Optional[str] = ..., up: _Optional[bool] = ..., since_s: _Optional[float] = ..., why: _Optional[str] = ..., utilisation: _Optional[float] = ..., load_tokens_per_s: _Optional[float] = ..., capacity_tokens_per_s: _Optional[float] = ..., override_action: _Optional[str] = ..., override_percent: _Optional[float] = ..., override_target: _Optional[float] = ..., paused: _Optional[str] = ..., override_expires_s: _Optional[float] = ...) -> None: ...

class MemberStatus(_message.Message):
    __slots__ = ("node", "healthy", "since_s", "version", "addresses")
    NODE_FIELD_NUMBER: _ClassVar[int]
    HEALTHY_FIELD_NUMBER: _ClassVar[int]
    SINCE_S_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    node: str
    healthy: bool
    since_s: float
    version: str
    addresses: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, node: _Optional[str] = ..., healthy: _Optional[bool] = ..., since_s: _Optional[float] = ..., version: _Optional[str] = ..., addresses: _Optional[_Iterable[str]] = ...) -> None: ...

class StoreStatus(_message.Message):
    __slots__ = ("available", "since_s", "detail")
    AVAILABLE_FIELD_NUMBER: _ClassVar[int]
    SINCE_S_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    available: bool
    since_s: float
    detail: str
    def __init__(self, available: _Optional[bool] = ..., since_s: _Optional[float] = ..., detail: _Optional[str] = ...) -> None: ...

class NodeStatus(_message.Message):
    __slots__ = ("id", "role", "connected", "since_s", "acked_revision", "sent_revision", "lag_s", "nack_revision", "nack_reason", "nack_s", "unsupported", "acked_directive", "staged", "directive_nack", "directive_nack_reason", "directive_nack_s")
    ID_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    SINCE_S_FIELD_NUMBER: _ClassVar[int]
    ACKED_REVISION_FIELD_NUMBER: _ClassVar[int]
    SENT_REVISION_FIELD_NUMBER: _ClassVar[int]
    LAG_S_FIELD_NUMBER: _ClassVar[int]
    NACK_REVISION_FIELD_NUMBER: _ClassVar[int]
    NACK_REASON_FIELD_NUMBER: _ClassVar[int]
    NACK_S_FIELD_NUMBER: _ClassVar[int]
    UNSUPPORTED_FIELD_NUMBER: _ClassVar[int]
    ACKED_DIRECTIVE_FIELD_NUMBER: _ClassVar[int]
    STAGED_FIELD_NUMBER: _ClassVar[int]
    DIRECTIVE_NACK_FIELD_NUMBER: _ClassVar[int]
    DIRECTIVE_NACK_REASON_FIELD_NUMBER: _ClassVar[int]
    DIRECTIVE_NACK_S_FIELD_NUMBER: _ClassVar[int]
    id: str
    role: str
    connected: bool
    since_s: float
    acked_revision: int
    sent_revision: int
    lag_s: float
    nack_revision: int
    nack_reason: str
    nack_s: float
    unsupported: _containers.RepeatedScalarFieldContainer[str]
    acked_directive: int
    staged: bool
    directive_nack: int
    directive_nack_reason: str
    directive_nack_s: float
    def __init__(self, id: _Optional[str] = ..., role: _Optional[str] = ..., connected: _Optional[bool] = ..., since_s: _Optional[float] = ..., acked_revision: _Optional[int] = ..., sent_revision: _Optional[int] = ..., lag_s: _Optional[float] = ..., nack_revision: _Optional[int] = ..., nack_reason: _Optional[str] = ..., nack_s: _Optional[float] = ..., unsupported: _Optional[_Iterable[str]] = ..., acked_directive: _Optional[int] = ..., staged: _Optional[bool] = ..., directive_nack: _Optional[int] = ..., directive_nack_reason: _Optional[str] = ..., directive_nack_s: _Optional[float] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("client", "tenant", "model", "name", "edge")
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    EDGE_FIELD_NUMBER: _ClassVar[int]
    client: str
    tenant: str
    model: str
    name: str
    edge: str
    def __init__(self, client: _Optional[str] = ..., tenant: _Optional[str] = ..., model: _Optional[str] = ..., name: _Optional[str] = ..., edge: _Optional[str] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("revision", "stale_since_s", "place", "name", "edges", "edge", "regions", "region", "path", "refusal", "notes", "demand_class", "heard")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    STALE_SINCE_S_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    EDGES_FIELD_NUMBER: _ClassVar[int]
    EDGE_FIELD_NUMBER: _ClassVar[int]
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    DEMAND_CLASS_FIELD_NUMBER: _ClassVar[int]
    HEARD_FIELD_NUMBER: _ClassVar[int]
    revision: int
    stale_since_s: float
    place: str
    name: str
    edges: _containers.RepeatedCompositeFieldContainer[Candidate]
    edge: str
    regions: _containers.RepeatedCompositeFieldContainer[Candidate]
    region: str
    path: str
    refusal: str
    notes: _containers.RepeatedScalarFieldContainer[str]
    demand_class: str
    heard: bool
    def __init__(self, revision: _Optional[int] = ..., stale_since_s: _Optional[float] = ..., place: _Optional[str] = ..., name: _Optional[str] = ..., edges: _Optional[_Iterable[_Union[Candidate, _Mapping]]] = ..., edge: _Optional[str] = ..., regions: _Optional[_Iterable[_Union[Candidate, _Mapping]]] = ..., region: _Optional[str] = ..., path: _Optional[str] = ..., refusal: _Optional[str] = ..., notes: _Optional[_Iterable[str]] = ..., demand_class: _Optional[str] = ..., heard: _Optional[bool] = ...) -> None: ...

class Candidate(_message.Message):
    __slots__ = ("name", "chosen", "excluded", "why", "distance_km", "rtt_ms", "share", "path")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    DISTANCE_KM_FIELD_NUMBER: _ClassVar[int]
    RTT_MS_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    name: str
    chosen: bool
    excluded: bool
    why: str
    distance_km: float
    rtt_ms: float
    share: float
    path: str
    def __init__(self, name: _Optional[str] = ..., chosen: _Optional[bool] = ..., excluded: _Optional[bool] = ..., why: _Optional[str] = ..., distance_km: _Optional[float] = ..., rtt_ms: _Optional[float] = ..., share: _Optional[float] = ..., path: _Optional[str] = ...) -> None: ...

class SetOverrideRequest(_message.Message):
    __slots__ = ("regions", "action", "reason", "percent", "expires_s", "force", "over_s", "dry_run", "deadline_s")
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PERCENT_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_S_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    OVER_S_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_S_FIELD_NUMBER: _ClassVar[int]
    regions: _containers.RepeatedScalarFieldContainer[str]
    action: str
    reason: str
    percent: float
    expires_s: float
    force: _containers.RepeatedScalarFieldContainer[str]
    over_s: float
    dry_run: bool
    deadline_s: float
    def __init__(self, regions: _Optional[_Iterable[str]] = ..., action: _Optional[str] = ..., reason: _Optional[str] = ..., percent: _Optional[float] = ..., expires_s: _Optional[float] = ..., force: _Optional[_Iterable[str]] = ..., over_s: _Optional[float] = ..., dry_run: _Optional[bool] = ..., deadline_s: _Optional[float] = ...) -> None: ...

class ClearOverrideRequest(_message.Message):
    __slots__ = ("regions", "reason", "over_s", "force", "dry_run")
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    OVER_S_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    regions: _containers.RepeatedScalarFieldContainer[str]
    reason: str
    over_s: float
    force: _containers.RepeatedScalarFieldContainer[str]
    dry_run: bool
    def __init__(self, regions: _Optional[_Iterable[str]] = ..., reason: _Optional[str] = ..., over_s: _Optional[float] = ..., force: _Optional[_Iterable[str]] = ..., dry_run: _Optional[bool] = ...) -> None: ...

class HistoryRequest(_message.Message):
    __slots__ = ("limit", "before_number", "kind", "name")
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    BEFORE_NUMBER_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    limit: int
    before_number: int
    kind: str
    name: str
    def __init__(self, limit: _Optional[int] = ..., before_number: _Optional[int] = ..., kind: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class HistoryResponse(_message.Message):
    __slots__ = ("entries", "oldest_number")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    OLDEST_NUMBER_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[HistoryEntry]
    oldest_number: int
    def __init__(self, entries: _Optional[_Iterable[_Union[HistoryEntry, _Mapping]]] = ..., oldest_number: _Optional[int] = ...) -> None: ...

class HistoryEntry(_message.Message):
    __slots__ = ("number", "revision", "time_s", "author", "reason", "changes", "forced", "replica", "hash", "previous")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    TIME_S_FIELD_NUMBER: _ClassVar[int]
    AUTHOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    FORCED_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    number: int
    revision: int
    time_s: float
    author: str
    reason: str
    changes: _containers.RepeatedCompositeFieldContainer[Change]
    forced: _containers.RepeatedScalarFieldContainer[str]
    replica: str
    hash: str
    previous: str
    def __init__(self, number: _Optional[int] = ..., revision: _Optional[int] = ..., time_s: _Optional[float] = ..., author: _Optional[str] = ..., reason: _Optional[str] = ..., changes: _Optional[_Iterable[_Union[Change, _Mapping]]] = ..., forced: _Optional[_Iterable[str]] = ..., replica: _Optional[str] = ..., hash: _Optional[str] = ..., previous: _Optional[str] = ...) -> None: ...

class RollbackRequest(_message.Message):
    __slots__ = ("to_revision", "dry_run", "force", "reason", "immediate")
    TO_REVISION_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    IMMEDIATE_FIELD_NUMBER: _ClassVar[int]
    to_revision: int
    dry_run: bool
    force: _containers.RepeatedScalarFieldContainer[str]
    reason: str
    immediate: bool
    def __init__(self, to_revision: _Optional[int] = ..., dry_run: _Optional[bool] = ..., force: _Optional[_Iterable[str]] = ..., reason: _Optional[str] = ..., immediate: _Optional[bool] = ...) -> None: ...

class VerifyAuditRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class VerifyAuditResponse(_message.Message):
    __slots__ = ("intact", "entries", "first_number", "last_number", "head_hash", "broken_at", "unchained")
    INTACT_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    FIRST_NUMBER_FIELD_NUMBER: _ClassVar[int]
    LAST_NUMBER_FIELD_NUMBER: _ClassVar[int]
    HEAD_HASH_FIELD_NUMBER: _ClassVar[int]
    BROKEN_AT_FIELD_NUMBER: _ClassVar[int]
    UNCHAINED_FIELD_NUMBER: _ClassVar[int]
    intact: bool
    entries: int
    first_number: int
    last_number: int
    head_hash: str
    broken_at: str
    unchained: int
    def __init__(self, intact: _Optional[bool] = ..., entries: _Optional[int] = ..., first_number: _Optional[int] = ..., last_number: _Optional[int] = ..., head_hash: _Optional[str] = ..., broken_at: _Optional[str] = ..., unchained: _Optional[int] = ...) -> None: ...

class GetRolloutRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ControlRolloutRequest(_message.Message):
    __slots__ = ("action", "reason")
    ACTION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    action: str
    reason: str
    def __init__(self, action: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Rollout(_message.Message):
    __slots__ = ("exists", "number", "revision", "status", "percent", "why", "author", "reason", "started_s", "stage_since_s", "next_step_s", "nodes_with", "nodes_due", "nodes", "canaries", "keys", "error_rate_with", "error_rate_without")
    EXISTS_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    PERCENT_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    AUTHOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    STARTED_S_FIELD_NUMBER: _ClassVar[int]
    STAGE_SINCE_S_FIELD_NUMBER: _ClassVar[int]
    NEXT_STEP_S_FIELD_NUMBER: _ClassVar[int]
    NODES_WITH_FIELD_NUMBER: _ClassVar[int]
    NODES_DUE_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    CANARIES_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    ERROR_RATE_WITH_FIELD_NUMBER: _ClassVar[int]
    ERROR_RATE_WITHOUT_FIELD_NUMBER: _ClassVar[int]
    exists: bool
    number: int
    revision: int
    status: str
    percent: float
    why: str
    author: str
    reason: str
    started_s: float
    stage_since_s: float
    next_step_s: float
    nodes_with: int
    nodes_due: int
    nodes: int
    canaries: _containers.RepeatedScalarFieldContainer[str]
    keys: _containers.RepeatedCompositeFieldContainer[Key]
    error_rate_with: float
    error_rate_without: float
    def __init__(self, exists: _Optional[bool] = ..., number: _Optional[int] = ..., revision: _Optional[int] = ..., status: _Optional[str] = ..., percent: _Optional[float] = ..., why: _Optional[str] = ..., author: _Optional[str] = ..., reason: _Optional[str] = ..., started_s: _Optional[float] = ..., stage_since_s: _Optional[float] = ..., next_step_s: _Optional[float] = ..., nodes_with: _Optional[int] = ..., nodes_due: _Optional[int] = ..., nodes: _Optional[int] = ..., canaries: _Optional[_Iterable[str]] = ..., keys: _Optional[_Iterable[_Union[Key, _Mapping]]] = ..., error_rate_with: _Optional[float] = ..., error_rate_without: _Optional[float] = ...) -> None: ...

class ErrorDetail(_message.Message):
    __slots__ = ("code", "hint", "problems", "refusals", "conflicts", "since_s", "omitted", "ambiguous")
    CODE_FIELD_NUMBER: _ClassVar[int]
    HINT_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    REFUSALS_FIELD_NUMBER: _ClassVar[int]
    CONFLICTS_FIELD_NUMBER: _ClassVar[int]
    SINCE_S_FIELD_NUMBER: _ClassVar[int]
    OMITTED_FIELD_NUMBER: _ClassVar[int]
    AMBIGUOUS_FIELD_NUMBER: _ClassVar[int]
    code: str
    hint: str
    problems: _containers.RepeatedCompositeFieldContainer[Problem]
    refusals: _containers.RepeatedCompositeFieldContainer[Refusal]
    conflicts: _containers.RepeatedCompositeFieldContainer[Key]
    since_s: float
    omitted: int
    ambiguous: bool
    def __init__(self, code: _Optional[str] = ..., hint: _Optional[str] = ..., problems: _Optional[_Iterable[_Union[Problem, _Mapping]]] = ..., refusals: _Optional[_Iterable[_Union[Refusal, _Mapping]]] = ..., conflicts: _Optional[_Iterable[_Union[Key, _Mapping]]] = ..., since_s: _Optional[float] = ..., omitted: _Optional[int] = ..., ambiguous: _Optional[bool] = ...) -> None: ...

class Problem(_message.Message):
    __slots__ = ("source", "path", "found", "allowed")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    FOUND_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_FIELD_NUMBER: _ClassVar[int]
    source: str
    path: str
    found: str
    allowed: str
    def __init__(self, source: _Optional[str] = ..., path: _Optional[str] = ..., found: _Optional[str] = ..., allowed: _Optional[str] = ...) -> None: ...
