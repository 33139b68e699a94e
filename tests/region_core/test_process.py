"""A core as a process: the command line, settings, starting, stopping."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from region_core.cli import app
from region_core.process import limits_of, make_engine
from region_core.settings import CoreSettings
from runtime.settings import load
from runtime.validation import InvalidDocument
from tests.region_core.cores import MODEL, document, identity


def write(path: Path, raw: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(raw))
    return path


def start(settings: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "region_core", "run", "--settings", str(settings)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ready(url: str, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(url + "/readyz").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError(process.communicate()[1])


def test_serves_without_a_control_plane_and_stops_when_told(tmp_path: Path) -> None:
    raw = document(tmp_path / "pki", control_plane=["127.0.0.1:1"], state_dir=str(tmp_path))
    url = f"http://127.0.0.1:{raw['http']['port']}"
    process = start(write(tmp_path / "core.yaml", raw))
    try:
        ready(url, process)
        turn = {"role": "user", "content": "hi"}
        asked = {"model": MODEL, "max_tokens": 4, "messages": [turn]}
        reply = httpx.post(url + "/v1/chat/completions", json=asked)
        assert reply.json()["usage"]["completion_tokens"] == 4
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert '"engine": "sim"' in err and "simulated" in err and '"event": "stopped"' in err
    assert "Traceback" not in err and not out


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"engine": "vllm"}, "one of 'sim', 'torch'"),
        ({"scheduling": {"slots": 0}}, "scheduling.slots"),
        ({"torch": {"device": "tpu"}}, "torch.device"),
        ({"speed": 1}, "an unknown field"),
        ({"identity": {"certificate": "a", "key": "b", "ca": "c"}}, "cannot read a"),
    ],
)
def test_what_is_wrong_with_the_settings_is_said(
    tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    process = start(write(tmp_path / "core.yaml", document(tmp_path / "pki", **changes)))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2 and expected in err and "Traceback" not in err, err
    assert not out


def test_a_taken_port_is_said(tmp_path: Path) -> None:
    raw = document(tmp_path / "pki")
    with socket.create_server(("127.0.0.1", raw["http"]["port"])):
        process = start(write(tmp_path / "core.yaml", raw))
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and "cannot listen on 127.0.0.1" in err, err


def test_an_edges_certificate_is_refused(tmp_path: Path) -> None:
    files = identity(tmp_path / "pki", "edge", "tokyo")
    raw = document(tmp_path / "pki")
    raw["identity"] = {n: str(getattr(files, n)) for n in ("certificate", "key", "ca")}
    process = start(write(tmp_path / "core.yaml", raw))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and "edge/tokyo, and this is a core" in err


def test_every_mistake_at_once(tmp_path: Path) -> None:
    raw = document(tmp_path / "pki", region="No Such", scheduling={"slots": "many"})
    with pytest.raises(InvalidDocument) as caught:
        load(CoreSettings, write(tmp_path / "core.yaml", raw), {})
    assert {problem.path for problem in caught.value.problems} == {"region", "scheduling.slots"}


def test_a_step_always_has_room_for_input(tmp_path: Path) -> None:
    raw = document(tmp_path / "pki", scheduling={"slots": 600, "step_tokens": 16})
    limits = limits_of(load(CoreSettings, write(tmp_path / "core.yaml", raw), {}))
    assert limits.step_tokens > limits.slots


def test_the_help_has_examples() -> None:
    from typer.testing import CliRunner

    result = CliRunner().invoke(app, ["run", "--help"])
    assert result.exit_code == 0 and "tradewind core run --settings core.yaml" in result.stdout


@pytest.mark.model
def test_the_torch_engine_by_the_settings(tmp_path: Path) -> None:
    raw = document(tmp_path / "pki", engine="torch", torch={"threads": 1, "device": "cpu"})
    engine = make_engine(load(CoreSettings, write(tmp_path / "core.yaml", raw), {}))
    engine.close()
    assert engine.description.engine == "torch" and engine.description.dtype == "bfloat16"
    assert engine.limits.context_tokens == 2048
