"""Log lines of a rank, in a process of its own as in a run."""

import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta

from support import CHECKOUT

LINE = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z) rank (\d+) (\w+) ([\w.]+): (.*)")
PROGRAM = """
import logging, warnings
from monitoring import configure_logging
configure_logging(3, logging.WARNING)
configure_logging(4, logging.INFO)
logging.getLogger("vpred_train.training.trainer").info("step %d", 7)
logging.getLogger("vpred_train.training.trainer").debug("hidden")
warnings.warn("careful", stacklevel=1)
"""


def test_lines_carry_utc_time_and_rank_once() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=CHECKOUT,
        env={"TZ": "Asia/Shanghai"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == ""
    matches = [match for match in map(LINE.fullmatch, done.stderr.splitlines()) if match]
    assert [match.groups()[1:] for match in matches[:1]] == [("4", "INFO", "vpred_train.training.trainer", "step 7")]
    assert [match[4] for match in matches[1:]] == ["py.warnings"]
    assert "hidden" not in done.stderr
    said = datetime.fromisoformat(matches[0][1])
    assert abs(datetime.now(UTC) - said) < timedelta(minutes=2)
