"""Figures as people write them: `200ms`, `30%`, `10mbit`. Pure; errors are `ValueError`s that say
what would be right."""

from __future__ import annotations

import re

_NUMBER = r"([0-9]{1,9}(?:\.[0-9]{1,9})?)"
_DURATION = re.compile(rf"{_NUMBER}\s*(us|ms|s|m)")
_PERCENT = re.compile(rf"{_NUMBER}\s*(%?)")
_BANDWIDTH = re.compile(rf"{_NUMBER}\s*([kmg]?)bit", re.IGNORECASE)
_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}
_BIT = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
UNLIMITED = "unlimited"


def milliseconds(text: str) -> float:
    """`200ms`, `1.5s`, `2m`; 0 needs no unit."""
    found = _DURATION.fullmatch(text.strip())
    if found is not None:
        return float(found[1]) * _MS[found[2]]
    if re.fullmatch(r"0+", text.strip()):
        return 0.0
    raise ValueError(f"{text!r} is no duration: 200ms, 1.5s, 2m")


def share(text: str) -> float:
    """`30%` or `0.3`."""
    found = _PERCENT.fullmatch(text.strip())
    value = float(found[1]) / (100 if found[2] else 1) if found is not None else -1.0
    if not 0 <= value <= 1:
        raise ValueError(f"{text!r} is no share: 30%, or 0.3; from 0 to 1")
    return value


def bandwidth(text: str) -> float:
    """`10mbit`, `64kbit`, `1gbit` a second; `unlimited` is 0. In bits per second."""
    if text.strip().lower() == UNLIMITED:
        return 0.0
    found = _BANDWIDTH.fullmatch(text.strip())
    value = float(found[1]) * _BIT[found[2].lower()] if found is not None else 0.0
    if value <= 0:
        raise ValueError(f"{text!r} is no bandwidth: 10mbit, 64kbit, 1gbit, or {UNLIMITED}")
    return value


def show_ms(value: float) -> str:
    if value >= 10_000:
        return f"{value / 1000:g}s"
    return f"{round(value, 3):g}ms"


def show_share(value: float) -> str:
    return f"{round(value * 100, 3):g}%"


def show_bandwidth(bit_per_s: float) -> str:
    for prefix in ("g", "m", "k"):
        if bit_per_s >= _BIT[prefix]:
            return f"{bit_per_s / _BIT[prefix]:g}{prefix}bit"
    return f"{bit_per_s:g}bit" if bit_per_s else UNLIMITED
