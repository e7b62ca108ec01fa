"""The Dockerfile's text: what hadolint says, and that the image gets no tests, documents or environments."""

import subprocess
import sys
from pathlib import Path

from support import CHECKOUT


def test_hadolint_finds_nothing() -> None:
    answer = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), CHECKOUT / "Dockerfile"], capture_output=True, text=True
    )
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")


def test_the_image_leaves_out_what_no_run_needs() -> None:
    ignored = (CHECKOUT / ".dockerignore").read_text().split()
    assert {".git", ".venv", "tests", "docs", "runs"} <= set(ignored)
