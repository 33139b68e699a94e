"""What is wrong with a call is said before anything is started."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from lab.cli import app


@pytest.mark.parametrize("report", ["nowhere/report.json", "."])
def test_a_report_that_cannot_be_written(tmp_path: Path, report: str) -> None:
    arguments = ["--directory", str(tmp_path / "lab"), "--report", str(tmp_path / report)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "cannot write" in result.output
    assert not (tmp_path / "lab").exists()


def test_a_directory_that_cannot_be_one(tmp_path: Path) -> None:
    (tmp_path / "lab").write_text("a file")
    result = CliRunner().invoke(app, ["--engine", "sim", "--directory", str(tmp_path / "lab")])
    assert result.exit_code == 1
    assert "cannot write" in result.output and "--directory" in result.output
