"""Options that several verbs share, each said once."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from topology.resources import KINDS


class Format(StrEnum):
    """How to print."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


Output = Annotated[Format, typer.Option("-o", "--output", help="How to print.")]
Reason = Annotated[str, typer.Option(help="Why, for those who look later. Kept in the history.")]
ForceResidency = Annotated[
    bool,
    typer.Option("--force-residency", help="Even where a tenant's residency has no region left."),
]
ForceLastRegion = Annotated[
    bool, typer.Option("--force-last-region", help="Even where a route has no region left.")
]
ForceMany = Annotated[
    bool, typer.Option("--force-many", help="Even more than 30% of the resources of a kind.")
]
ForceCapacity = Annotated[
    bool, typer.Option("--force-capacity", help="Even where a region would get more than it can.")
]
ForceRollout = Annotated[
    bool, typer.Option("--force-rollout", help="Even while another change is being rolled out.")
]
ForceEmptySelector = Annotated[
    bool, typer.Option("--force-empty-selector", help="Even where nothing is named.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show what would happen.")]
Immediate = Annotated[
    bool,
    typer.Option("--immediate", help="To all nodes at once, whatever Policy says."),
]
Wait = Annotated[
    bool, typer.Option("--wait/--no-wait", help="Wait until every connected node has it.")
]
Timeout = Annotated[
    float, typer.Option(help="How long to wait for nodes, in seconds.", min=0.0, max=3600.0)
]


def forced(
    residency: bool = False,
    last_region: bool = False,
    many: bool = False,
    capacity: bool = False,
    rollout: bool = False,
    empty_selector: bool = False,
) -> list[str]:
    """The names of the rules to overrule, as the admin API takes them."""
    rules = {
        "residency": residency,
        "last-region": last_region,
        "many": many,
        "capacity": capacity,
        "rollout": rollout,
        "empty-selector": empty_selector,
    }
    return [rule for rule, wanted in rules.items() if wanted]


def kind_named(text: str) -> str:
    """`region`, `regions` and `Region` are all `Region`; an unknown kind is a usage error."""
    wanted = text.lower().replace("-", "")
    for kind in KINDS:
        plural = f"{kind[:-1]}ies" if kind.endswith("y") else f"{kind}s"
        if wanted in (kind.lower(), plural.lower()):
            return kind
    raise typer.BadParameter(f"no kind {text!r}; kinds: {', '.join(KINDS)}")
