from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class Resource(_message.Message):
    __slots__ = ("kind", "name", "json")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    JSON_FIELD_NUMBER: _ClassVar[int]
    kind: str
    name: str
    json: bytes
    def __init__(self, kind: _Optional[str] = ..., name: _Optional[str] = ..., json: _Optional[bytes] = ...) -> None: ...

class Directive(_message.Message):
    __slots__ = ("node", "json")
    NODE_FIELD_NUMBER: _ClassVar[int]
    JSON_FIELD_NUMBER: _ClassVar[int]
    node: str
    json: bytes
    def __init__(self, node: _Optional[str] = ..., json: _Optional[bytes] = ...) -> None: ...
