"""Memory of keys and values: what a long sequence took goes back."""

from __future__ import annotations

from pathlib import Path

import torch

from region_core.engine.kv_cache import KeyValueCache


def resident_kib() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    raise AssertionError("no RssAnon")


def test_memory_is_given_out_as_used_and_goes_back() -> None:
    before = resident_kib()
    cpu = torch.device("cpu")
    cache = KeyValueCache(2, 4, 32_768, 2, 64, torch.bfloat16, cpu)  # 2 * 64 MiB if all was used
    assert resident_kib() - before < 8 * 1024
    places = torch.arange(cache.place(1, 0), cache.place(1, 32_768))
    for layer in (0, 1):
        cache.store(layer, places, torch.ones(32_768, 256, dtype=torch.bfloat16))
    used = resident_kib() - before
    assert used > 30 * 1024
    cache.forget(1, 32_768)
    assert resident_kib() - before < used - 24 * 1024
    keys, _ = cache.stripes(0, 1, 1, 1024)
    assert keys[0, 0, 100, 0] == 1 and keys[0, 0, 1000, 0] == 0


def test_slots_do_not_touch_each_other() -> None:
    cache = KeyValueCache(1, 3, 64, 1, 8, torch.float32, torch.device("cpu"))
    for slot in range(3):
        places = torch.tensor([cache.place(slot, position) for position in range(5)])
        cache.store(0, places, torch.full((5, 16), float(slot + 1)))
    keys, values = cache.stripes(0, 1, 2, 64)
    assert keys.shape == (2, 1, 64, 8)
    assert keys[0, 0, :5].eq(2).all() and values[1, 0, :5].eq(3).all()
    assert keys[:, :, 5:].eq(0).all()
