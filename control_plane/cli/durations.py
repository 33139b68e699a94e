"""Durations as they are typed: 90s, 10m, 2h, 1d."""

from __future__ import annotations

import re

import typer

_FORM = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)([smhd])")
_UNIT_S = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}


def is_duration(text: str) -> bool:
    return _FORM.fullmatch(text) is not None


def seconds(option: str, text: str) -> float:
    """0 where nothing is given; a usage error where it is no duration."""
    if not text:
        return 0.0
    found = _FORM.fullmatch(text)
    if found is None:
        raise typer.BadParameter(f"{option} {text!r} is no 90s, 10m, 2h, 1d")
    return float(found[1]) * _UNIT_S[found[2]]
