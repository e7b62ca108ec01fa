"""Commands that are run in this process: `refused` is vpred-sample's, `run` vpred-weights'."""

from pathlib import Path

import pytest

from launcher.contract.exit_codes import ExitCode
from vpred_train.commands import sample, weights


def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, *arguments: str) -> str:
    output = tmp_path / "images"
    with pytest.raises(SystemExit) as end:
        sample.main([*arguments, "--output", str(output)])
    assert end.value.code == ExitCode.BAD_CONFIG
    assert not output.exists()
    (line,) = capsys.readouterr().err.splitlines()
    return line


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        weights.main([str(word) for word in words])
    printed = capsys.readouterr()
    assert isinstance(caught.value.code, int)
    return caught.value.code, printed.out, printed.err
