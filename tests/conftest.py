"""What holds for all tests: what one leaves behind in the process is taken back, and ranks that wait make room.

Signals act as in a shell in front of a terminal, wherever the tests run: `&` in a script ignores SIGINT, nohup SIGHUP.
"""

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from monitoring.logs import RankHandler

# Jobs of several files share the cores: a rank that waits for its peers lets others work.
os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")

for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
signal.pthread_sigmask(signal.SIG_SETMASK, ())

# What a test needs, by where it lies or by the fixture that it asks for. `tests/run.sh quick` leaves these out.
FOLDERS = {"integration": "slow", "container": "slow", "examples": "slow", "docs": "slow", "vpred_train": "mindspore"}
FIXTURES = {"bench": "mpi", "browser": "slow", "hosts": "hosts", "slurm": "hosts"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        marks = [FOLDERS.get(folder), *(mark for name, mark in FIXTURES.items() if name in item.fixturenames)]
        for mark in filter(None, marks):
            item.add_marker(mark)
    # Files of minutes begin before those of seconds, which fill the end on either process.
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A rank that is played in this process logs to a stderr that is closed when its test ends."""
    root = logging.getLogger()
    level = root.level
    yield
    for handler in [handler for handler in root.handlers if isinstance(handler, RankHandler)]:
        root.removeHandler(handler)
    root.setLevel(level)
    logging.captureWarnings(False)
