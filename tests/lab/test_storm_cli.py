"""What is wrong with a call of `tradewind storm` is said before anything is started."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from lab.storm import cli


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--via", "127.0.0.1:9000"], "--via"),
        (["--via", "https://127.0.0.1:9000"], "--via"),
        (["--via", "http://"], "--via"),
        (["--via", "http://10.0.0.1:80"], "--via"),
        (["--via", "http://proxy.example:80"], "--via"),
        (["--via", "http://:9000"], "--via"),
        (["--via", "http://127.0.0.1:99999"], "--via"),
        (["--via", "http://127.0.0.1:x"], "--via"),
        (["--only", "both"], "--only"),
        (["--only", "protected", "--unprotected"], "--unprotected"),
        (["--kill", "region=atlantis"], "--kill"),
        (["--peers", "nobody"], "--peers"),
        (["--report", "."], "--report"),
        (["--scale", "nan"], "--scale"),
    ],
)
def test_a_wrong_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], named: str
) -> None:
    monkeypatch.setattr(cli, "_run", lambda *_: pytest.fail("it has begun"))
    result = CliRunner().invoke(cli.app, ["--directory", str(tmp_path / "storm"), *arguments])
    assert result.exit_code == 2, result.output
    assert named in result.output
    assert not (tmp_path / "storm").exists()
