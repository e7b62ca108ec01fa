"""Rank-table and schema commands, progress lines, and the shim on its own (no mpirun)."""

import io
import json
import logging
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.contract.environment import environment
from launcher.contract.exit_codes import ExitCode
from launcher.contract.run_dir import Outcome, RankStatus, RunDir
from launcher.processes.tied import own_program
from launcher.supervision import progress as progress_module
from launcher.supervision.progress import BarProgress, LineProgress, make_progress
from support import CHECKOUT, TESTS

ASCEND = CHECKOUT / "cluster_configs" / "ascend_4x8_mpirun.yaml"
GOLDEN = TESTS / "launcher" / "golden" / "rank_table_ascend_4x8_mpirun.json"


def test_ranktable_generate_writes_the_golden_table(tmp_path, capsys):
    output = tmp_path / "table.json"
    assert main(["ranktable", "generate", "--cluster", str(ASCEND), "--output", str(output)]) == ExitCode.OK
    assert output.read_text() == GOLDEN.read_text()
    assert main(["ranktable", "generate", "--cluster", str(ASCEND)]) == ExitCode.OK
    assert capsys.readouterr().out == GOLDEN.read_text()


@pytest.mark.parametrize(
    ("cluster", "output", "message"),
    [
        ("local_cpu", "t.json", "accelerator: found 'cpu' (rank tables list Ascend devices)"),
        ("ascend_1x8", "t.txt", "(HCCL wants a name that ends in .json)"),
        ("ascend_1x8", "none/t.json", "cannot be written (No such file or directory)"),
    ],
)
def test_ranktable_generate_refuses(tmp_path, capsys, cluster, output, message):
    config = CHECKOUT / "cluster_configs" / f"{cluster}.yaml"
    argv = ["ranktable", "generate", "--cluster", str(config), "--output", str(tmp_path / output)]
    assert main(argv) == ExitCode.BAD_CONFIG
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_schema_is_json_schema(capsys):
    assert main(["schema"]) == ExitCode.OK
    keys = json.loads(capsys.readouterr().out)["properties"]
    assert "Machines" in keys["hosts"]["description"]


def statuses(phase: str, step: int, loss: float | None = None, rate: float | None = None) -> dict[int, RankStatus]:
    return {
        rank: RankStatus(
            rank=rank,
            hostname="n",
            pid=1,
            phase=phase,
            step=step,
            total_steps=20,
            samples_seen=step,
            loss=loss,
            images_per_second=rate,
            updated_unix_s=0.0,
        )
        for rank in (0, 1)
    }


def test_lines_come_with_news_and_every_ten_seconds(monkeypatch):
    now_s = 100.0
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now_s)
    stream = io.StringIO()
    progress = make_progress(stream)
    assert isinstance(progress, LineProgress)
    progress.update({})
    progress.update(statuses("compiling", 0))
    progress.update(statuses("training", 0))
    for step in range(1, 11):
        now_s += 1.1
        progress.update(statuses("training", step, 0.5, 4.25))
    progress.update(statuses("sampling", 20, 0.25))
    assert stream.getvalue().splitlines() == [
        "compiling the step: step 0/20",
        "training: step 0/20",
        "training: step 10/20, loss 0.5000, 8.5 img/s, 11 s left",
        "sampling: step 20/20, loss 0.2500",
    ]


def test_the_bar_shows_steps_loss_and_the_rate_of_all_ranks():
    stream = io.StringIO()
    progress = BarProgress(stream)
    progress.update(statuses("compiling", 0))
    progress.update(statuses("training", 5))
    progress.update(statuses("training", 10, 0.5, 4.25))
    progress.update(statuses("sampling", 20, 0.25, 4.25))
    progress.close()
    first, *bars = re.split(r"[\r\n]+", stream.getvalue())
    assert first == "compiling the step ..."
    assert any("| 10/20 [" in bar and "loss 0.5000, 8.5 img/s" in bar for bar in bars)
    assert any(bar.startswith("sampling") and "100%" in bar for bar in bars)


def test_a_message_of_the_launcher_stands_above_the_bar_on_the_same_stream(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    assert main(["status", "/nowhere"]) == ExitCode.BAD_CONFIG  # sets the log up
    progress = BarProgress(stream)
    progress.update(statuses("training", 5))
    logging.getLogger("launcher.any").warning("a disk is %s", "full")
    progress.close()
    logging.getLogger("launcher.any").warning("all is well")
    lines = re.split(r"[\r\n]+", stream.getvalue())
    assert lines.count("a disk is full") == lines.count("all is well") == 1
    assert lines.index("a disk is full") > next(n for n, line in enumerate(lines) if "| 5/20 [" in line)


@pytest.mark.parametrize(
    ("level", "shown"),
    [("info", (True, True, True)), ("warning", (True, True, False)), ("error", (True, False, False))],
)
def test_the_log_level_decides_which_messages_are_shown(bench, level, shown):
    options = ("cluster.restart.max_restarts=1", "cluster.restart.first_delay_s=0.1", "--log-level", level)
    err = bench.launch("fault=raise", *options).stderr
    words = ("ValueError: a tensor went missing", "restart 1 of 1 from step 2", "2 attempts; not trained in")
    assert tuple(each in err for each in words) == shown


def test_a_level_that_is_none_is_refused(capsys):
    with pytest.raises(SystemExit) as end:
        main(["run", "--log-level", "loud"])
    assert end.value.code == ExitCode.BAD_CONFIG
    assert "--log-level: invalid choice: 'loud'" in capsys.readouterr().err


TRAINER = """
import os, signal, sys, time
signal.signal(signal.SIGUSR1, lambda number, frame: sys.exit(75))
print("hidden" if "OMPI_COMMAND" not in os.environ else "seen", flush=True)
time.sleep(60)
"""


def start_shim(run: RunDir, trainer: list[str]) -> subprocess.Popen[bytes]:
    env = environment() | {
        "PYTHONPATH": str(CHECKOUT),
        "OMPI_COMM_WORLD_RANK": "1",
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_LOCAL_RANK": "1",
        "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
        "OMPI_COMMAND": "python",
        "PMIX_RANK": "1",
    }
    argv = [*own_program(sys.executable, "launcher.rank.shim"), "--run-dir", str(run.root), "--attempt", "4"]
    argv += ["--lease-s", "60", "--by", "openmpi"]
    return subprocess.Popen([*argv, "--init", "dynamic_cluster", "--", *trainer], env=env)


def test_the_shim_logs_forwards_and_gives_an_account(tmp_path, wait_until):
    run = RunDir(tmp_path)
    attempt = run.attempt(4)
    attempt.root.mkdir(parents=True)
    statuses("training", 12)[1].write(attempt.status(1))
    shim = start_shim(run, [sys.executable, "-c", TRAINER])
    wait_until(lambda: attempt.log(1).exists() and attempt.log(1).read_text() == "hidden\n")
    shim.send_signal(signal.SIGUSR1)
    assert shim.wait(timeout=60) == ExitCode.PREEMPTED
    outcome = Outcome.read(attempt.outcome(1))
    assert outcome is not None
    assert (outcome.rank, outcome.returncode, outcome.last_step) == (1, 75, 12)


@pytest.mark.parametrize(
    ("trainer", "returncode", "exit_code"),
    [
        ([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], -9, 137),
        (["/nowhere/python"], 127, 127),
    ],
)
def test_the_shim_tells_how_the_trainer_ended(tmp_path, trainer, returncode, exit_code):
    run = RunDir(tmp_path)
    assert start_shim(run, trainer).wait(timeout=60) == exit_code
    outcome = Outcome.read(run.attempt(4).outcome(1))
    assert outcome is not None and outcome.returncode == returncode
    if exit_code == 127:
        assert run.attempt(4).log(1).read_text() == "cannot start /nowhere/python: No such file or directory\n"


def test_the_check_of_a_recipe_does_not_outlive_the_launcher(tmp_path, wait_until):
    trainer, told = tmp_path / "trainer", tmp_path / "pid"
    trainer.write_text(f'#!/bin/sh\necho $$ >"{told}.part"\nmv "{told}.part" "{told}"\nexec sleep 600\n')
    trainer.chmod(0o755)
    program = "import sys; from pathlib import Path; from launcher.planning.trainer import Trainer, resolve_recipe\n"
    program += "from launcher.contract.run_dir import RunDir\n"
    program += "resolve_recipe(Trainer((sys.argv[1],), (), {}), Path('recipe.yaml'), 'cpu', 2, RunDir(Path('run')), [])"
    launcher = subprocess.Popen([sys.executable, "-P", "-c", program, str(trainer)])
    wait_until(told.exists)
    launcher.terminate()
    assert launcher.wait(timeout=60) == -signal.SIGTERM
    command = Path(f"/proc/{int(told.read_text())}/cmdline")
    wait_until(lambda: not command.exists() or not command.read_bytes())  # gone, or for init to reap
