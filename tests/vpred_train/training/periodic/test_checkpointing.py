"""When a run saves: by samples, epochs, time and on request; failures that it tolerates; data beside the tensors."""

import argparse
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from checkpoints_mgr import CheckpointError, CheckpointFaultError, CheckpointManager, DriftError, SaveResult, State
from checkpoints_mgr.disk import storage
from launcher.contract.accelerators import ACCELERATORS
from launcher.contract.config import load_document
from vpred_train.config.train import TrainConfig
from vpred_train.diffusion.parameterization import ParameterizationRecord
from vpred_train.distributed.collectives import SingleProcess
from vpred_train.errors import is_users
from vpred_train.training.hooks.hook import Hook
from vpred_train.training.periodic.periodic import Boundary


class Clock:
    """A training state as far as a save sees it."""

    def __init__(self) -> None:
        self.progress = SimpleNamespace(samples_seen=0)

    def to_checkpoint(self) -> State:
        seen = self.progress.samples_seen
        return State({"model/w": np.full(3, seen, np.float32)}, {"samples_seen": seen})


class Seen(Hook):
    def __init__(self) -> None:
        self.steps: list[int] = []
        self.failures: list[str] = []

    def on_phase(self, phase: str, step: int, samples_seen: int) -> None:
        assert (phase, samples_seen) == ("checkpointing", 4 * step)

    def on_checkpoint(self, saved: SaveResult) -> None:
        self.steps.append(saved.step)

    def on_checkpoint_failed(self, reason: str) -> None:
        self.failures.append(reason)


@pytest.fixture
def run(train_config: TrainConfig, tmp_path: Path) -> Iterator[Callable[..., tuple[Any, Seen]]]:
    """run(steps, prepare, **keys of the checkpoint section): steps of 4 samples, 10 to an epoch; then (saves, seen)."""
    from vpred_train.training.periodic.checkpointing import CheckpointSaver, SaveRequest

    def steps(
        count: int, prepare: Any = None, last: bool = False, validation: Any = None, **keys: Any
    ) -> tuple[Any, Seen]:
        section = train_config.checkpoint.model_copy(update={"keep_last": 99, **keys})
        config = train_config.model_copy(update={"checkpoint": section})
        clock, seen = Clock(), Seen()
        request, manager = (
            SaveRequest(tmp_path / "checkpoint_now", looks=True),
            CheckpointManager(tmp_path, retention=section.retention(4)),
        )
        saves = CheckpointSaver(config, clock, manager, SingleProcess(), 10, request, validation)  # type: ignore[arg-type]
        for step in range(1, count + 1):
            clock.progress.samples_seen = 4 * step
            if prepare is not None:
                prepare(saves, step)
            saves.after_step(Boundary(step, 4 * step, 4, finished=last and step == count), seen)
        saves.close(seen)
        return saves, seen

    yield steps
    storage.set_failpoint(None)


@pytest.mark.parametrize("background", [True, False])
def test_by_samples_by_epochs_and_at_the_end(run: Any, background: bool, tmp_path: Path) -> None:
    _, seen = run(12, last=True, every_samples=20, every_epochs=1, background=background)
    assert seen.steps == [3, 5, 8, 10, 12]  # past 10 and 30 samples; at 20 and 40, which are epochs too; the end
    assert seen.failures == []


def test_by_time(run: Any) -> None:
    def wait(saves: Any, step: int) -> None:
        if step == 3:
            saves.begun_s -= 60.5

    _, seen = run(6, wait, every_samples=400, every_minutes=1)
    assert seen.steps == [3]


def test_on_request_by_a_signal_or_a_file(run: Any, tmp_path: Path) -> None:
    def ask(saves: Any, step: int) -> None:
        saves.request.looked_s = 0.0
        if step == 2:
            os.kill(os.getpid(), signal.SIGUSR2)
        if step == 4:
            (tmp_path / "checkpoint_now").touch()

    _, seen = run(6, ask, every_samples=400)
    assert seen.steps == [2, 4]
    assert not (tmp_path / "checkpoint_now").exists()


def test_a_request_takes_one_checkpoint_and_is_not_lost(run: Any, tmp_path: Path) -> None:
    """One that is due anyway answers it; one that cannot begin yet does so later, also where others are skipped."""

    def ask(saves: Any, step: int) -> None:
        saves.request.looked_s = 0.0
        if step == 2:
            (tmp_path / "checkpoint_now").touch()

    _, seen = run(5, ask, every_samples=8)
    assert seen.steps == [2, 4]
    busy = {"held": True}

    def hold(operation: str, path: Path, detail: Any) -> None:
        while operation == "fsync" and "-step_0000000011-" in str(path) and busy["held"]:
            time.sleep(0.001)

    def ask_twice(saves: Any, step: int) -> None:
        saves.request.looked_s = 0.0
        if step in (11, 12):
            (tmp_path / "checkpoint_now").touch()
        if step >= 14:
            busy["held"] = False
            if saves.checkpoints.pending_step is not None:  # first the files, then the commit
                assert saves.checkpoints._saver.pending.task.ended.wait(10)

    storage.set_failpoint(hold)
    _, seen = run(17, ask_twice, every_samples=400, on_busy="skip")
    assert seen.steps == [11, 15]


def test_what_a_checkpoint_says_of_itself(run: Any, train_config: TrainConfig, tmp_path: Path) -> None:
    run(1, last=True, every_samples=400)
    manifest = json.loads((tmp_path / "step_0000000001" / "MANIFEST.json").read_text())
    (tmp_path / "train.yaml").write_text(manifest["record"]["train"])
    written = train_config.checkpoint.model_copy(update={"keep_last": 99, "every_samples": 400})
    assert load_document(TrainConfig, tmp_path / "train.yaml") == train_config.model_copy(
        update={"checkpoint": written}
    )
    record = ParameterizationRecord.model_validate_json(manifest["record"]["parameterization"])
    assert (record.samples_seen, record.diffusion.prediction_type) == (4, "v")


def test_the_best_by_held_out_loss_stay(run: Any, tmp_path: Path) -> None:
    class Losses:
        """Held-out losses after the first three steps alone."""

        def loss_at(self, samples_seen: int) -> float | None:
            return {4: 0.5, 8: 0.1, 12: 0.3}.get(samples_seen)

    run(6, validation=Losses(), every_samples=4, keep_last=1, keep_best=1)
    kept = sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("step_"))
    assert kept == ["step_0000000002", "step_0000000006"]


def test_ranks_that_have_drifted_apart_end_the_run_at_once(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other failed saves are survived: the next may be well. This one cannot."""

    def refuse(*arguments: Any, **more: Any) -> None:
        raise DriftError("rank 1 differs from rank 0")

    monkeypatch.setattr(CheckpointManager, "start_save", refuse)
    with pytest.raises(DriftError) as caught:
        run(9, every_samples=8)
    assert not is_users(caught.value)


def fail(*steps: int) -> Callable[..., None]:
    def hook(operation: str, path: Path, detail: Any) -> None:
        if operation == "fsync" and any(f"-step_{step:010d}-" in str(path) for step in steps):
            raise OSError(28, "No space left on device")

    return hook


def test_a_few_failed_saves_are_borne_and_told(run: Any) -> None:
    storage.set_failpoint(fail(2, 3))
    _, seen = run(5, every_samples=4)
    assert seen.steps == [1, 4, 5]
    assert [reason[:18] for reason in seen.failures] == ["cannot save step 2", "cannot save step 3"]


def test_failures_in_a_row_or_of_the_last_save_end_the_run(run: Any) -> None:
    storage.set_failpoint(fail(1, 2, 3, 4))
    with pytest.raises(CheckpointError, match=r"cannot save step 4: .* No space left"):
        run(9, every_samples=4)
    storage.set_failpoint(fail(2))
    with pytest.raises(CheckpointError, match="cannot save step 2"):
        run(2, last=True, every_samples=400)


@pytest.mark.parametrize(("on_busy", "steps"), [("wait", [1, 2, 3, 4, 5]), ("skip", [1, 5])])
def test_a_save_that_is_due_while_one_is_written(run: Any, on_busy: str, steps: list[int]) -> None:
    busy = {"held": True}

    def hold(operation: str, path: Path, detail: Any) -> None:
        while operation == "fsync" and "-step_0000000001-" in str(path) and busy["held"]:
            pass

    def release(saves: Any, step: int) -> None:
        if step == (2 if on_busy == "wait" else 4):
            busy["held"] = False
        if on_busy == "skip" and step >= 4:  # first the files, then the commit
            assert saves.checkpoints._saver.pending.task.ended.wait(10)

    storage.set_failpoint(hold)
    _, seen = run(5, release, every_samples=4, on_busy=on_busy)
    assert seen.steps == steps


@pytest.mark.parametrize(("number", "users"), [(28, True), (122, True), (30, True), (5, False), (116, False)])
def test_whose_doing_a_failed_last_save_is(run: Any, number: int, users: bool) -> None:
    """A full or read-only disk is the user's to mend, with a remedy; a disk that fails is not."""

    def hook(operation: str, path: Path, detail: Any) -> None:
        if operation == "fsync":
            raise OSError(number, os.strerror(number), str(path))

    storage.set_failpoint(hook)
    with pytest.raises(CheckpointError, match="cannot save step 1") as raised:
        run(1, last=True, every_samples=400)
    assert is_users(raised.value) == users
    assert any(word in str(raised.value) for word in ("; make room there", "; give a directory")) == users


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (CheckpointError("no room; make some"), 2, "no room; make some\n"),
        (CheckpointFaultError("a disk fails"), 1, ""),
        (ZeroDivisionError("a bug"), 1, ""),
        (SystemExit(0), 1, ""),
    ],
)
def test_the_exit_code_of_a_rank_and_what_it_shows(
    train_config: TrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
    code: int,
    told: str,
) -> None:
    """One line for the user's mistakes, a traceback for all else."""
    from vpred_train import runtime
    from vpred_train.distributed import session
    from vpred_train.training import run, worker

    def fail(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr(run, "train_rank", fail)
    monkeypatch.setattr(runtime, "start", lambda *arguments: None)
    monkeypatch.setattr(session, "configure_logging", lambda *arguments: None)
    options = {"rank_table": None, "run_dir": tmp_path, "device_ids": None, "profile": 0}
    options |= {"attempt": 1, "metrics_port_base": None, "run_name": None}
    with pytest.raises(SystemExit) as ended:
        worker.train(train_config, argparse.Namespace(collective_timeout_s=10.0, **options), ACCELERATORS["cpu"])
    assert ended.value.code == code
    assert capsys.readouterr().err == told
    tracebacks = [record.exc_info is not None for record in caplog.records if record.levelname == "ERROR"]
    assert tracebacks == [True] * (code == 1)
