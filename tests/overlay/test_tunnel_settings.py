"""What may be set of a tunnel, in a file."""

from __future__ import annotations

import pytest

from runtime.identity import Identity
from runtime.validation import InvalidDocument, convert
from topology.overlay.relay import HEAD_BYTES, RelaySettings
from topology.overlay.tunnel import Tunnel, TunnelSettings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("probe_idle_ms", 5), ("probe_idle_ms", 60_000), ("probe_busy_ms", 0),
        ("silent_after_ms", -1), ("silent_after_jitters", 0.0), ("silent_keep_ms", 10**9),
        ("keep_alive_ms", 1000), ("dead_after_ms", 750), ("dead_after_rtts", 4.0),
    ],
)  # fmt: skip
def test_nonsense_and_what_is_no_more_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(InvalidDocument, match=name):
        convert({name: value}, TunnelSettings, "overlay")


def test_what_is_allowed_is_taken() -> None:
    settings = convert({"probe_busy_ms": 100, "silent_after_ms": 300}, TunnelSettings, "overlay")
    assert (settings.probe_busy_ms, settings.silent_after_ms) == (100, 300)
    assert settings.silent_keep_ms == TunnelSettings().silent_keep_ms


@pytest.mark.parametrize(("most", "relayed"), [(1200, 1200), (1350, 1341), (9000, 1472)])
def test_what_is_relayed_is_no_larger_than_a_relay_takes(
    most: int, relayed: int, edge: Identity
) -> None:
    """It would be dropped while probes pass: a path that is up and carries nothing."""
    settings = TunnelSettings(max_datagram_bytes=most)
    direct = Tunnel("dubai", "127.0.0.1:1", edge, settings=settings)
    through = Tunnel("frankfurt", "via dubai", edge, settings=settings, via=direct)
    assert direct._configuration.max_datagram_size == most
    assert through._configuration.max_datagram_size == relayed
    assert relayed <= RelaySettings().max_datagram_bytes
    assert relayed + HEAD_BYTES <= most or most == 1200
