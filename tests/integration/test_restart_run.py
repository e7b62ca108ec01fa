"""A rank of a real training is killed, the launcher starts again by itself, and nothing of it is left in the result."""

import os
import re
import signal
import subprocess
from pathlib import Path

from launcher.contract.run_dir import RankStatus, RunDir
from launcher.records.attempt_record import read_records
from support.jobs import SMALL_RECIPE, end, lend_graphs, losses, start, wait_until

STEPS, STEPS_PER_CHECKPOINT = 60, 10
LENGTH = [f"total_samples={4 * STEPS}", f"checkpoint.every_samples={4 * STEPS_PER_CHECKPOINT}", "final_samples=0"]


def finished(process: subprocess.Popen[str]) -> str:
    code, output = end(process)
    assert code == 0, output
    return output


def test_a_run_that_started_again_by_itself_ends_as_if_undisturbed(tmp_path: Path) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(SMALL_RECIPE)
    undisturbed, run = RunDir(tmp_path / "undisturbed"), RunDir(tmp_path / "disturbed")
    finished(start(recipe, undisturbed.root, 2, overrides=LENGTH))

    lend_graphs(undisturbed.root, run.root)
    restart = ["cluster.restart.max_restarts=1", "cluster.restart.first_delay_s=0.1"]
    process = start(recipe, run.root, 2, overrides=[*LENGTH, *restart])
    committed = run.manifest(STEPS_PER_CHECKPOINT)
    wait_until(lambda: committed.exists() and len(losses(run.root)) > STEPS_PER_CHECKPOINT, process)
    victim = RankStatus.read(run.attempt(1).status(1))
    assert victim is not None
    os.kill(victim.pid, signal.SIGKILL)

    output = finished(process)
    assert re.search(r"rank 1 on host \S+ ended with SIGKILL after step \d+; restart 1 of 1 from step", output)
    first, second = read_records(run)
    assert (first.exit_code, second.exit_code) == (128 + signal.SIGKILL, 0)
    assert STEPS_PER_CHECKPOINT <= second.resumed_step <= first.last_step < second.last_step == STEPS
    assert second.resumed_step % STEPS_PER_CHECKPOINT == 0
    assert len(losses(run.root)) == STEPS
    assert losses(run.root) == losses(undisturbed.root)
    files = sorted(undisturbed.weights.iterdir())
    assert [path.name for path in sorted(run.weights.iterdir())] == [path.name for path in files] != []
    for path in files:
        assert (run.weights / path.name).read_bytes() == path.read_bytes()
