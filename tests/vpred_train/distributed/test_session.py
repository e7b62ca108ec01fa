"""How a rank ends: alone or with all others, and what it prints."""

import signal
from typing import Any

import pytest

from checkpoints_mgr import CheckpointFaultError
from launcher.contract.accelerators import ACCELERATORS
from launcher.contract.config import ConfigError
from launcher.contract.exit_codes import ExitCode
from launcher.contract.identity import Identity
from vpred_train import runtime
from vpred_train.distributed import session
from vpred_train.distributed.collectives import SingleProcess
from vpred_train.distributed.session import rank_session


class AbortedError(Exception):
    """All ranks were ended, with this exit code."""


class Ranks(SingleProcess):
    """Two ranks, of which this process is one."""

    world_size = 2
    closed = False

    def abort(self, exit_code: int) -> Any:
        raise AbortedError(exit_code)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Ranks:
    made = Ranks()
    monkeypatch.setattr(session, "make_collective", lambda *arguments: made)
    monkeypatch.setattr(runtime, "start", lambda *arguments: None)
    return made


def be(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    monkeypatch.setattr(runtime, "identify", lambda: Identity(rank, 2, rank, 2, "node-b", "test"))


def test_a_rank_that_ends_well_closes_its_collective(monkeypatch: pytest.MonkeyPatch, ranks: Ranks) -> None:
    be(monkeypatch, 1)
    with rank_session(ACCELERATORS["cpu"]) as rank:
        assert rank.start() is ranks
        assert not rank.is_first
    assert ranks.closed


@pytest.mark.parametrize("own_log", [False, True])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_mistake_that_all_ranks_find_is_printed_once_on_a_shared_terminal(
    monkeypatch: pytest.MonkeyPatch, ranks: Ranks, rank: int, own_log: bool
) -> None:
    """Rank 0 raises it to its command, which prints it. The others only end, unless each has a log of its own."""
    be(monkeypatch, rank)
    monkeypatch.setattr(session, "configure_logging", lambda *arguments: None)
    ends = pytest.raises(ConfigError, match="no") if rank == 0 or own_log else pytest.raises(SystemExit, match=r"^2$")
    with ends, rank_session(ACCELERATORS["cpu"], own_log):
        raise ConfigError("no")


@pytest.mark.parametrize(
    ("error", "code", "printed"),
    [
        (ConfigError("no"), ExitCode.BAD_CONFIG, "no\n"),
        (CheckpointFaultError("a disk fails"), ExitCode.FAILED, ""),
        (ZeroDivisionError("a bug"), ExitCode.FAILED, ""),
        (SystemExit(0), ExitCode.FAILED, ""),
        (KeyboardInterrupt(), 128 + signal.SIGINT, ""),
    ],
)
def test_an_error_after_the_ranks_have_met_ends_all_of_them(
    monkeypatch: pytest.MonkeyPatch,
    ranks: Ranks,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
    code: int,
    printed: str,
) -> None:
    be(monkeypatch, 1)
    with pytest.raises(AbortedError) as ended, rank_session(ACCELERATORS["cpu"]) as rank:
        rank.start()
        raise error
    assert ended.value.args == (code,)
    assert capsys.readouterr().err == printed
    logged = [record.getMessage() for record in caplog.records if record.exc_info]
    assert logged == ["rank 1 on node-b failed"] * (code == ExitCode.FAILED)
    assert not ranks.closed
