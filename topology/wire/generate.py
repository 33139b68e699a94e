"""Generate `topology/wire/gen` from the .proto files: `python -m topology.wire.generate`.

Needs grpcio-tools (the extra `dev`). protoc writes imports relative to the proto root
(`from tradewind.v1 import …`); they are rewritten to where the code lies, so that no second
top-level package appears. The output is checked in, and a test regenerates and compares it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

PROTO_ROOT = Path(__file__).parent
PROTOS = (
    "tradewind/v1/resource.proto",
    "tradewind/v1/admin.proto",
    "tradewind/v1/membership.proto",
    "tradewind/v1/replicas.proto",
)
PACKAGE = "topology.wire.gen"
_IMPORT = re.compile(r"^(from|import) tradewind\.", re.MULTILINE)


def generate(into: Path) -> None:
    """Write the generated packages below `into`, or raise `RuntimeError` with protoc's status."""
    from grpc_tools import protoc

    into.mkdir(parents=True, exist_ok=True)
    outputs = [f"--{kind}_out={into}" for kind in ("python", "pyi", "grpc_python")]
    status = protoc.main(["protoc", f"-I{PROTO_ROOT}", *outputs, *PROTOS])
    if status != 0:
        raise RuntimeError(f"protoc failed with status {status}")
    for path in into.rglob("*.py*"):
        if path.suffix in (".py", ".pyi"):
            text = path.read_text(encoding="utf-8")
            path.write_text(_IMPORT.sub(rf"\1 {PACKAGE}.tradewind.", text), encoding="utf-8")
    for folder in (into, into / "tradewind", into / "tradewind" / "v1"):
        (folder / "__init__.py").write_text("", encoding="utf-8")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else PROTO_ROOT / "gen")
