from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class FeedRequest(_message.Message):
    __slots__ = ("interval_s",)
    INTERVAL_S_FIELD_NUMBER: _ClassVar[int]
    interval_s: float
    def __init__(self, interval_s: _Optional[float] = ...) -> None: ...

class FeedPart(_message.Message):
    __slots__ = ("replica", "now_s", "observed")
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    NOW_S_FIELD_NUMBER: _ClassVar[int]
    OBSERVED_FIELD_NUMBER: _ClassVar[int]
    replica: str
    now_s: float
    observed: bytes
    def __init__(self, replica: _Optional[str] = ..., now_s: _Optional[float] = ..., observed: _Optional[bytes] = ...) -> None: ...
