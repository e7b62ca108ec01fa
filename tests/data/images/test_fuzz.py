"""Damaged images and shards, a seeded part of what `fuzz_readers.py` tries by the ten thousand."""

import subprocess
import sys

import pytest

from support.images import fuzz_readers
from support.images.fuzz_readers import fuzz, no_process

pytestmark = pytest.mark.filterwarnings("ignore")  # of Pillow, at what is damaged


def test_damaged_images_and_shards_are_blamed_and_start_nothing() -> None:
    with no_process():
        found = fuzz(3000, 0)
    assert found["read"] > 600
    assert sum(count for reason, count in found.items() if not reason.startswith("shard")) == 3000
    assert found["shard: no end mark at byte"] + found["shard: bad checksum"] > 100
    assert len(found) > 15


def test_a_process_that_is_started_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_readers, "started", [])
    with pytest.raises(AssertionError), no_process():
        subprocess.run([sys.executable, "-c", ""], check=True)
