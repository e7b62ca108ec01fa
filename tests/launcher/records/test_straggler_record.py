"""How a slow rank is described."""

from launcher.records.straggler_record import Straggler

SLOW = Straggler(rank=1, own_step_seconds=0.5, others_step_seconds=0.25)


def test_a_slow_rank_is_compared_with_the_others() -> None:
    assert SLOW.describe("host") == "0.500 s of local work per step, the median of the others is 0.250 s"


def test_engine_device_shows_slow_hosts_and_names_what_finds_slow_devices() -> None:
    words = SLOW.describe("device")
    assert words.startswith(SLOW.describe("host"))
    assert "its host's time between two steps" in words
    assert "`vpred-launch doctor`" in words
