from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Heartbeat(_message.Message):
    __slots__ = ("node_id", "incarnation", "lease", "version", "addresses", "healthy", "draining", "regions", "orca", "leaving")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    HEALTHY_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    ORCA_FIELD_NUMBER: _ClassVar[int]
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
    leaving: bool
    def __init__(self, node_id: _Optional[str] = ..., incarnation: _Optional[str] = ..., lease: _Optional[int] = ..., version: _Optional[str] = ..., addresses: _Optional[_Iterable[str]] = ..., healthy: _Optional[bool] = ..., draining: _Optional[bool] = ..., regions: _Optional[_Iterable[_Union[RegionSeen, _Mapping]]] = ..., orca: _Optional[bytes] = ..., leaving: _Optional[bool] = ...) -> None: ...

class RegionSeen(_message.Message):
    __slots__ = ("region", "reachable", "rtt_ms")
    REGION_FIELD_NUMBER: _ClassVar[int]
    REACHABLE_FIELD_NUMBER: _ClassVar[int]
    RTT_MS_FIELD_NUMBER: _ClassVar[int]
    region: str
    reachable: bool
    rtt_ms: float
    def __init__(self, region: _Optional[str] = ..., reachable: _Optional[bool] = ..., rtt_ms: _Optional[float] = ...) -> None: ...

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
