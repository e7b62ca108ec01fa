"""The benchmark of the data path bears the name of the package that it measures."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("script", ["data.py", "data_index.py"])
def test_it_does_not_hide_the_package_from_itself_and_from_those_beside_it(script: str, tmp_path: Path) -> None:
    told = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith(f"usage: {script}")
