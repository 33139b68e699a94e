"""Every token's hidden state has the same bits, however the work was put together.

Alone, in a batch, with its prompt in any chunks, replayed in another core, with one thread or
two. True on CPUs where torch's bfloat16 products come from oneDNN with AVX-512; elsewhere the
engine works, and this is not promised.
"""

from __future__ import annotations

import os
import subprocess
import sys

import msgspec
import pytest
import torch

from region_core.engine.process import ENVIRONMENT
from region_core.weights.bundle import Bundle

pytestmark = pytest.mark.model


def measured(bundle: Bundle, threads: int) -> dict[str, list[list[str]]]:
    """In a process of its own, as an engine runs: with the environment that it is given."""
    command = [sys.executable, "-m", "tests.region_core.bits", str(threads), str(bundle.folder)]
    out = subprocess.run(
        command, env=os.environ | ENVIRONMENT, capture_output=True, text=True, check=True
    ).stdout
    return msgspec.json.decode(out.splitlines()[-1], type=dict[str, list[list[str]]])


def test_the_same_bits(real_bundle: Bundle) -> None:
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("no bfloat16 products by oneDNN here")
    one, two = measured(real_bundle, 1), measured(real_bundle, 2)
    expected = one["alone"]
    assert (
        len({digest for digests in expected for digest in digests}) > 30
    )  # they are not all the same for some dull reason
    for threads, found in ((1, one), (2, two)):
        for way, digests in found.items():
            assert digests == expected, f"{way}, with {threads} threads"
