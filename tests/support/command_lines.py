"""Commands that are run in this process: `refused` is vpred-sample's, `run` vpred-weights'; `exit_code` is any."""

from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.contract.exit_codes import ExitCode
from vpred_train.commands import sample, weights


def exit_code(main: Callable[[list[str]], int], *words: object) -> int:
    """What a decorated `main` returns."""
    return int(main([str(word) for word in words]))


def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, *arguments: str) -> str:
    output = tmp_path / "images"
    assert exit_code(sample.main, *arguments, "--output", output) == ExitCode.BAD_CONFIG
    assert not output.exists()
    (line,) = capsys.readouterr().err.splitlines()
    return line


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = exit_code(weights.main, *words)
    printed = capsys.readouterr()
    return code, printed.out, printed.err
