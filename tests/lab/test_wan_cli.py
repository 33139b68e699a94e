"""`tradewind lab wan` against an emulator of its own, as a process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from typer.testing import CliRunner

from lab.cli import app
from lab.wan.control import SOCKET
from tests.lab.wan_worlds import free_port

NAMES = ("tokyo-singapore", "tokyo-dubai", "london-frankfurt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("wan")
    links = [
        {"name": name, "listen": f"127.0.0.1:{free_port()}", "target": "127.0.0.1:9", "rtt_ms": 10}
        for name in NAMES
    ]
    settings = directory / "wan.yaml"
    settings.write_text(yaml.safe_dump({"links": links, "control": str(directory / SOCKET)}))
    command = [sys.executable, "-m", "lab.wan", "--settings", str(settings)]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            end = time.monotonic() + 60
            while not (directory / SOCKET).exists():
                assert process.poll() is None and time.monotonic() < end
                time.sleep(0.05)
            yield directory
        finally:
            process.terminate()
            assert process.wait(30) == 0


@pytest.fixture(autouse=True)
def mended(folder: Path) -> Iterator[None]:
    yield
    assert run(folder, "reset")[0] == 0


def run(folder: Path, *arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["--directory", str(folder), "wan", *arguments])
    return result.exit_code, result.output


def links(folder: Path, *arguments: str) -> dict[str, Any]:
    status, said = run(folder, *arguments, "-o", "json")
    assert status == 0, said
    return {link["name"]: link for link in msgspec.json.decode(said)}


def test_a_table_of_all_links(folder: Path) -> None:
    status, said = run(folder, "ls")
    assert status == 0
    assert [line.split()[0] for line in said.splitlines()] == ["LINK", *NAMES]
    assert re.search(r"tokyo-dubai +both +up +5ms +0ms +0% +unlimited", said)


def test_set_in_one_direction(folder: Path) -> None:
    wanted = "set tokyo-singapore --rtt 200ms --jitter 5ms --loss 30% --bandwidth 10mbit"
    status, said = run(folder, *wanted.split(), "--direction", "out")
    assert status == 0
    assert re.search(r"tokyo-singapore +out +up +100ms +5ms +30% +10mbit +queue 100ms", said)
    assert re.search(r"tokyo-singapore +back +up +5ms +0ms +0% +unlimited", said)
    link = links(folder, "ls")["tokyo-singapore"]
    assert link["out"]["figures"]["bandwidth_bit_per_s"] == 1e7
    assert link["back"]["figures"]["loss"] == 0


def test_cut_mend_flap_and_reset_by_pattern(folder: Path) -> None:
    assert not any(link["out"]["up"] for link in links(folder, "cut", "tokyo-*").values())
    assert links(folder, "ls")["london-frankfurt"]["out"]["up"]
    assert "cut" in run(folder, "ls", "*-dubai")[1]
    assert all(link["out"]["up"] for link in links(folder, "mend", "*").values())
    assert "flap 2000ms/500ms" in run(folder, "flap", "*-dubai", "--up", "2s", "--down", "500ms")[1]
    assert "mean" in run(folder, "flap", "*-dubai", "--random")[1]
    assert all(link["out"]["figures"]["flap"] is None for link in links(folder, "reset").values())


def test_for_a_while(folder: Path) -> None:
    status, said = run(folder, "cut", "tokyo-dubai", "--for", "1s")
    assert status == 0 and re.search(r"cut \([01]\.\ds more\)", said)
    end = time.monotonic() + 20
    while not links(folder, "ls")["tokyo-dubai"]["out"]["up"]:
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        ("cut oslo-dubai", 1, "no link 'oslo-dubai'"),
        ("cut tokyo-singapor", 1, "did you mean 'tokyo-singapore'?"),
        ("set * --loss 130%", 2, "no share: 30%"),
        ("set * --loss -1", 2, "no share"),
        ("set * --rtt 200", 2, "no duration: 200ms"),
        ("set * --rtt 100000s", 1, "latency_ms"),
        ("set * --bandwidth fast", 2, "no bandwidth: 10mbit"),
        ("set * --bandwidth 0mbit", 2, "unlimited"),
        ("set *", 2, "at least one figure"),
        ("set * --rtt 20ms --latency 20ms", 1, "both given"),
        ("set * --loss 10% --direction up", 2, "'out', 'back', 'both'"),
        ("cut * --for 0s", 2, "nothing lasts for 0"),
        ("cut * --for ever", 2, "no duration"),
        ("flap * --up 1ms", 1, "up_ms"),
        ("ls oslo", 1, "there are: tokyo-singapore, tokyo-dubai, london-frankfurt"),
    ],
)
def test_bad_input_says_what_would_be_right_and_changes_nothing(
    folder: Path, arguments: str, status: int, says: str
) -> None:
    before = links(folder, "ls")
    result = CliRunner().invoke(
        app,
        ["--directory", str(folder), "wan", *arguments.split()],
        env={"COLUMNS": "200", "TERM": "dumb"},
    )
    assert result.exit_code == status, result.output
    assert says in " ".join(result.output.split())
    assert links(folder, "ls") == before


def test_no_lab(tmp_path: Path) -> None:
    status, said = run(tmp_path, "ls")
    assert status == 1
    assert "no WAN emulator answers" in said and "tradewind lab --serve" in said


def test_help_has_examples(folder: Path) -> None:
    status, said = run(folder, "--help")
    assert status == 0
    assert "--rtt 200ms" in said and "--for 10s" in said


def test_watching(folder: Path) -> None:
    command = [sys.executable, "-m", "control_plane.cli.main", "lab", "--directory", str(folder)]
    process = subprocess.Popen(
        [*command, "wan", "ls", "--watch", "-o", "json"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in range(2):
        assert len(msgspec.json.decode(process.stdout.readline())) == len(NAMES)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    process.stdout.close()


def test_names_are_completed(folder: Path) -> None:
    words = f"tradewind lab --directory {folder} wan cut tok"
    environment = os.environ | {
        "_TRADEWIND_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": "6",
    }  # fmt: skip
    program = (
        "import sys; sys.argv[0] = 'tradewind'; "
        "from control_plane.cli.main import app; app(prog_name='tradewind')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["tokyo-singapore", "tokyo-dubai"], done.stderr
