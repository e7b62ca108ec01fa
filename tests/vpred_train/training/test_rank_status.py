"""What a rank tells its launcher while it trains, waits or is stuck; and that no way out leaves the others waiting."""

import errno
import io
import os
import signal
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launcher.contract.accelerators import ACCELERATORS
from launcher.contract.config import ConfigError
from launcher.contract.exit_codes import ExitCode
from launcher.contract.identity import Identity
from launcher.contract.run_dir import AttemptDir, RankStatus
from support.step_results import RESULT
from vpred_train.config.train import TrainConfig
from vpred_train.distributed import session
from vpred_train.distributed.collectives import SingleProcess
from vpred_train.distributed.watchdog import CollectiveTimer, Watchdog
from vpred_train.training import run, worker
from vpred_train.training.hooks import status as status_module
from vpred_train.training.hooks.status import StatusHook

IDENTITY = Identity(1, 2, 1, 2, "n", "test")
LONG = replace(RESULT, step=1, samples_seen=4, step_seconds=9.0, data_wait_seconds=0.0, collective_seconds=0.0)


@pytest.fixture
def attempt(tmp_path: Path) -> AttemptDir:
    return AttemptDir(tmp_path)


@pytest.fixture
def status(train_config: TrainConfig, attempt: AttemptDir) -> Iterator[StatusHook]:
    hook = StatusHook(IDENTITY, 7, train_config, attempt, CollectiveTimer())
    yield hook
    hook.close()


def told(attempt: AttemptDir) -> RankStatus:
    record = RankStatus.read(attempt.status(1))
    assert record is not None
    return record


def test_own_time_is_without_collectives_and_the_first_step(status: StatusHook, attempt: AttemptDir) -> None:
    status.checkpoint_step = 3
    for step, (seconds, collective_s) in enumerate(((60.0, 1.0), (2.0, 0.5), (3.0, 2.5)), start=4):
        clock = {"step": step, "step_seconds": seconds, "collective_seconds": collective_s}
        status.written_s = 0.0  # due
        status.on_step(replace(LONG, **clock))
    now = told(attempt)
    assert (now.phase, now.step, now.timed_steps, now.own_seconds) == ("training", 6, 2, pytest.approx(2.0))
    assert now.images_per_second == pytest.approx(4 / 2 / 3.0)  # two ranks share the global batch of 4
    assert now.checkpoint_step == 3


def test_a_rank_that_waits_goes_on_telling(
    train_config: TrainConfig, attempt: AttemptDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_module, "BEAT_S", 0.02)
    watchdog = Watchdog(1, 60.0)
    status = StatusHook(IDENTITY, 7, train_config, attempt, watchdog.timer)
    status.on_phase("compiling", 0, 0)
    assert not told(attempt).waiting
    with watchdog.watching():
        for _ in range(1000):
            if told(attempt).waiting:
                break
            status.closed.wait(0.01)
        assert told(attempt).waiting
    assert not watchdog.timer.inside and watchdog.timer.total_s > 0
    status.close()
    watchdog.close()


class FullDisk(io.TextIOBase):
    """A log where there is no more room."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("way_out", "code"),
    [
        (SystemExit(0), ExitCode.FAILED),
        (KeyboardInterrupt(), 128 + signal.SIGINT),
        (RuntimeError("broken"), ExitCode.FAILED),
        (ConfigError("not like that"), ExitCode.BAD_CONFIG),
    ],
)
def test_no_way_out_leaves_the_others_waiting_not_even_on_a_full_disk(
    way_out: BaseException, code: int, train_config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class EndedError(Exception):
        pass

    def leave(*arguments: Any) -> None:
        raise way_out

    def abort(collective: SingleProcess, exit_code: int) -> None:
        raise EndedError(exit_code)

    monkeypatch.setattr(SingleProcess, "abort", abort)
    monkeypatch.setattr(run, "train_rank", leave)
    monkeypatch.setattr(session, "configure_logging", lambda *arguments: None)
    monkeypatch.setattr(sys, "stderr", FullDisk())
    arguments = Namespace(
        device_ids=None,
        rank_table=None,
        collective_timeout_s=9.0,
        run_dir=tmp_path / "run",
        attempt=None,
        metrics_port_base=None,
        run_name=None,
        profile=0,
    )
    with pytest.raises(EndedError) as ended:
        worker.train(train_config, arguments, ACCELERATORS["cpu"])
    assert ended.value.args == (code,)
