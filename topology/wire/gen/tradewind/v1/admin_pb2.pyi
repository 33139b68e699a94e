from topology.wire.gen.tradewind.v1 import resource_pb2 as _resource_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Key(_message.Message):
    __slots__ = ("kind", "name")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    kind: str
    name: str
    def __init__(self, kind: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class ApplyRequest(_message.Message):
    __slots__ = ("puts", "removes", "dry_run", "prune", "force", "reason")
    PUTS_FIELD_NUMBER: _ClassVar[int]
    REMOVES_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    PRUNE_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    puts: _containers.RepeatedCompositeFieldContainer[_resource_pb2.Resource]
    removes: _containers.RepeatedCompositeFieldContainer[Key]
    dry_run: bool
    prune: bool
    force: _containers.RepeatedScalarFieldContainer[str]
    reason: str
    def __init__(self, puts: _Optional[_Iterable[_Union[_resource_pb2.Resource, _Mapping]]] = ..., removes: _Optional[_Iterable[_Union[Key, _Mapping]]] = ..., dry_run: _Optional[bool] = ..., prune: _Optional[bool] = ..., force: _Optional[_Iterable[str]] = ..., reason: _Optional[str] = ...) -> None: ...

class ApplyResponse(_message.Message):
    __slots__ = ("revision", "applied", "changes", "refusals", "warnings")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    REFUSALS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    revision: int
    applied: bool
    changes: _containers.RepeatedCompositeFieldContainer[Change]
    refusals: _containers.RepeatedCompositeFieldContainer[Refusal]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, revision: _Optional[int] = ..., applied: _Optional[bool] = ..., changes: _Optional[_Iterable[_Union[Change, _Mapping]]] = ..., refusals: _Optional[_Iterable[_Union[Refusal, _Mapping]]] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

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
    __slots__ = ("replica", "now_s", "store", "revision", "stale_since_s", "problems", "nodes", "started_s")
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    NOW_S_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    STALE_SINCE_S_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    STARTED_S_FIELD_NUMBER: _ClassVar[int]
    replica: str
    now_s: float
    store: StoreStatus
    revision: int
    stale_since_s: float
    problems: _containers.RepeatedScalarFieldContainer[str]
    nodes: _containers.RepeatedCompositeFieldContainer[NodeStatus]
    started_s: float
    def __init__(self, replica: _Optional[str] = ..., now_s: _Optional[float] = ..., store: _Optional[_Union[StoreStatus, _Mapping]] = ..., revision: _Optional[int] = ..., stale_since_s: _Optional[float] = ..., problems: _Optional[_Iterable[str]] = ..., nodes: _Optional[_Iterable[_Union[NodeStatus, _Mapping]]] = ..., started_s: _Optional[float] = ...) -> None: ...

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
    __slots__ = ("id", "role", "connected", "since_s", "acked_revision", "sent_revision", "lag_s", "nack_revision", "nack_reason", "nack_s", "unsupported")
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
    def __init__(self, id: _Optional[str] = ..., role: _Optional[str] = ..., connected: _Optional[bool] = ..., since_s: _Optional[float] = ..., acked_revision: _Optional[int] = ..., sent_revision: _Optional[int] = ..., lag_s: _Optional[float] = ..., nack_revision: _Optional[int] = ..., nack_reason: _Optional[str] = ..., nack_s: _Optional[float] = ..., unsupported: _Optional[_Iterable[str]] = ...) -> None: ...

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
    __slots__ = ("revision", "stale_since_s", "place", "name", "edges", "edge", "regions", "region", "path", "refusal", "notes")
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
    def __init__(self, revision: _Optional[int] = ..., stale_since_s: _Optional[float] = ..., place: _Optional[str] = ..., name: _Optional[str] = ..., edges: _Optional[_Iterable[_Union[Candidate, _Mapping]]] = ..., edge: _Optional[str] = ..., regions: _Optional[_Iterable[_Union[Candidate, _Mapping]]] = ..., region: _Optional[str] = ..., path: _Optional[str] = ..., refusal: _Optional[str] = ..., notes: _Optional[_Iterable[str]] = ...) -> None: ...

class Candidate(_message.Message):
    __slots__ = ("name", "chosen", "excluded", "why", "distance_km", "rtt_ms")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    DISTANCE_KM_FIELD_NUMBER: _ClassVar[int]
    RTT_MS_FIELD_NUMBER: _ClassVar[int]
    name: str
    chosen: bool
    excluded: bool
    why: str
    distance_km: float
    rtt_ms: float
    def __init__(self, name: _Optional[str] = ..., chosen: _Optional[bool] = ..., excluded: _Optional[bool] = ..., why: _Optional[str] = ..., distance_km: _Optional[float] = ..., rtt_ms: _Optional[float] = ...) -> None: ...

class SetOverrideRequest(_message.Message):
    __slots__ = ("region", "action", "reason", "percent", "expires_s", "force")
    REGION_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PERCENT_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_S_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    region: str
    action: str
    reason: str
    percent: float
    expires_s: float
    force: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, region: _Optional[str] = ..., action: _Optional[str] = ..., reason: _Optional[str] = ..., percent: _Optional[float] = ..., expires_s: _Optional[float] = ..., force: _Optional[_Iterable[str]] = ...) -> None: ...

class ClearOverrideRequest(_message.Message):
    __slots__ = ("region", "reason")
    REGION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    region: str
    reason: str
    def __init__(self, region: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

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
