"""The generated code is what the .proto files say."""

from __future__ import annotations

import re
from pathlib import Path

from topology.wire.generate import PROTO_ROOT, generate

GENERATED = PROTO_ROOT / "gen"


def test_generating_again_gives_the_same(tmp_path: Path) -> None:
    generate(tmp_path)
    files = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.py*"))
    assert files == sorted(
        path.relative_to(GENERATED)
        for path in GENERATED.rglob("*.py*")
        if "__pycache__" not in path.parts
    )
    for file in files:
        assert without_versions(tmp_path / file) == without_versions(GENERATED / file), file


def without_versions(path: Path) -> str:
    """The text, but for which release of protoc and grpcio-tools wrote it."""
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"# Protobuf Python Version: .*", "", text)
    text = re.sub(r"Domain\.PUBLIC,\s+\d+,\s+\d+,\s+\d+,", "", text)
    return re.sub(r"GRPC_GENERATED_VERSION = .*", "", text)
