from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Heartbeat(_message.Message):
    __slots__ = ("node_id", "incarnation", "lease", "version", "addresses", "healthy", "draining", "regions", "orca", "path_events", "ladder", "leaving")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    HEALTHY_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    ORCA_FIELD_NUMBER: _ClassVar[int]
    PATH_EVENTS_FIELD_NUMBER: _ClassVar[int]
    LADDER_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    incarnation: str
    lease: int
    version: str
    addresses: _containers.RepeatedScalarFieldContainer[str]
    healthy: bool
    draining: bool
    regions: _containers.RepeatedCompositeFieldContainer[RegionSeen]
    orca: bytes
    path_events: _containers.RepeatedCompositeFieldContainer[PathEvent]
    ladder: _containers.RepeatedCompositeFieldContainer[Standing]
    leaving: bool
    def __init__(self, node_id: _Optional[str] = ..., incarnation: _Optional[str] = ..., lease: _Optional[int] = ..., version: _Optional[str] = ..., addresses: _Optional[_Iterable[str]] = ..., healthy: _Optional[bool] = ..., draining: _Optional[bool] = ..., regions: _Optional[_Iterable[_Union[RegionSeen, _Mapping]]] = ..., orca: _Optional[bytes] = ..., path_events: _Optional[_Iterable[_Union[PathEvent, _Mapping]]] = ..., ladder: _Optional[_Iterable[_Union[Standing, _Mapping]]] = ..., leaving: _Optional[bool] = ...) -> None: ...

class RegionSeen(_message.Message):
    __slots__ = ("region", "reachable", "rtt_ms", "paths", "queue_ms")
    REGION_FIELD_NUMBER: _ClassVar[int]
    REACHABLE_FIELD_NUMBER: _ClassVar[int]
    RTT_MS_FIELD_NUMBER: _ClassVar[int]
    PATHS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    region: str
    reachable: bool
    rtt_ms: float
    paths: _containers.RepeatedCompositeFieldContainer[PathSeen]
    queue_ms: float
    def __init__(self, region: _Optional[str] = ..., reachable: _Optional[bool] = ..., rtt_ms: _Optional[float] = ..., paths: _Optional[_Iterable[_Union[PathSeen, _Mapping]]] = ..., queue_ms: _Optional[float] = ...) -> None: ...

class PathSeen(_message.Message):
    __slots__ = ("relay", "up", "state", "rtt_ms", "measured_rtt_ms", "jitter_ms", "loss_out", "loss_back", "since_s", "why", "exchanges", "extra_ms")
    RELAY_FIELD_NUMBER: _ClassVar[int]
    UP_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    RTT_MS_FIELD_NUMBER: _ClassVar[int]
    MEASURED_RTT_MS_FIELD_NUMBER: _ClassVar[int]
    JITTER_MS_FIELD_NUMBER: _ClassVar[int]
    LOSS_OUT_FIELD_NUMBER: _ClassVar[int]
    LOSS_BACK_FIELD_NUMBER: _ClassVar[int]
    SINCE_S_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    EXCHANGES_FIELD_NUMBER: _ClassVar[int]
    EXTRA_MS_FIELD_NUMBER: _ClassVar[int]
    relay: str
    up: bool
    state: str
    rtt_ms: float
    measured_rtt_ms: float
    jitter_ms: float
    loss_out: float
    loss_back: float
    since_s: float
    why: str
    exchanges: int
    extra_ms: float
    def __init__(self, relay: _Optional[str] = ..., up: _Optional[bool] = ..., state: _Optional[str] = ..., rtt_ms: _Optional[float] = ..., measured_rtt_ms: _Optional[float] = ..., jitter_ms: _Optional[float] = ..., loss_out: _Optional[float] = ..., loss_back: _Optional[float] = ..., since_s: _Optional[float] = ..., why: _Optional[str] = ..., exchanges: _Optional[int] = ..., extra_ms: _Optional[float] = ...) -> None: ...

class PathEvent(_message.Message):
    __slots__ = ("at_s", "region", "before", "after", "why")
    AT_S_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    at_s: float
    region: str
    before: str
    after: str
    why: str
    def __init__(self, at_s: _Optional[float] = ..., region: _Optional[str] = ..., before: _Optional[str] = ..., after: _Optional[str] = ..., why: _Optional[str] = ...) -> None: ...

class Standing(_message.Message):
    __slots__ = ("tier", "quality", "since_s", "pressure", "why", "recent")
    class RecentEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    TIER_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    SINCE_S_FIELD_NUMBER: _ClassVar[int]
    PRESSURE_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    RECENT_FIELD_NUMBER: _ClassVar[int]
    tier: str
    quality: str
    since_s: float
    pressure: float
    why: str
    recent: _containers.ScalarMap[str, float]
    def __init__(self, tier: _Optional[str] = ..., quality: _Optional[str] = ..., since_s: _Optional[float] = ..., pressure: _Optional[float] = ..., why: _Optional[str] = ..., recent: _Optional[_Mapping[str, float]] = ...) -> None: ...

class HeartbeatReply(_message.Message):
    __slots__ = ("lease", "ttl_s", "interval_s", "registered", "detail")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_S_FIELD_NUMBER: _ClassVar[int]
    REGISTERED_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    lease: int
    ttl_s: float
    interval_s: float
    registered: bool
    detail: str
    def __init__(self, lease: _Optional[int] = ..., ttl_s: _Optional[float] = ..., interval_s: _Optional[float] = ..., registered: _Optional[bool] = ..., detail: _Optional[str] = ...) -> None: ...
