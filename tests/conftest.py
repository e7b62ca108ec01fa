"""What a test leaves behind in the process is taken back, so that their order does not matter."""

import logging
from collections.abc import Iterator

import pytest

from monitoring.logs import RankHandler


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
