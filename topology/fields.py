"""The types of single fields of resources: each carries its own check and its own description.

And `Spec`, the base of what is made of them.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta, Struct

Name: TypeAlias = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$",
        extra_json_schema={
            "description": "a name of 1 to 63 lower-case letters, digits, '-' and '.'"
        },
    ),
]
Selector: TypeAlias = Annotated[
    str,
    Meta(
        pattern=r"^(\*|[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?)$",
        extra_json_schema={"description": "a name, or '*' for all"},
    ),
]
ModelName: TypeAlias = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?$",
        extra_json_schema={
            "description": "a model name of letters, digits, '-', '_' and '.' (128 at most)"
        },
    ),
]
Latitude: TypeAlias = Annotated[float, Meta(ge=-90, le=90)]
Longitude: TypeAlias = Annotated[float, Meta(ge=-180, le=180)]
Percent: TypeAlias = Annotated[float, Meta(ge=0, le=100)]
UnixTime: TypeAlias = Annotated[
    float,
    Meta(
        ge=0,
        lt=253_402_300_800,  # what a calendar of four-digit years can show
        extra_json_schema={"description": "seconds since 1970, before the year 10000"},
    ),
]
Jurisdiction: TypeAlias = Annotated[
    str,
    Meta(
        pattern=r"^[A-Z]{2}$",
        extra_json_schema={"description": "a two-letter jurisdiction such as SG, EU or AE"},
    ),
]
HostPort: TypeAlias = Annotated[
    str,
    Meta(
        pattern=r"^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}$",
        extra_json_schema={"description": "host:port"},
    ),
]
Positive: TypeAlias = Annotated[float, Meta(gt=0)]
Port: TypeAlias = Annotated[int, Meta(ge=1, le=65535)]
Share: TypeAlias = Annotated[float, Meta(ge=0, le=1)]
Seconds: TypeAlias = Annotated[float, Meta(gt=0, le=604_800)]


class Spec(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The base of every `spec`: frozen, and closed to fields it does not know."""
