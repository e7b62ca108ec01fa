"""The benchmarks of the data path find what they import from any folder."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent / "data"


@pytest.mark.parametrize("script", ["bench_data.py", "bench_data_cache.py", "bench_data_index.py"])
def test_a_benchmark_says_what_it_takes(script: str, tmp_path: Path) -> None:
    told = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith(f"usage: {script}")
