"""A run that is asked for a checkpoint, loses a rank, and goes on with another number of ranks."""

import json
import signal
from pathlib import Path

import numpy as np

from launcher.contract.run_dir import RankStatus, RunDir
from support.jobs import SMALL_RECIPE, end, losses, start, wait_until

OVERRIDES = ["total_samples=240", "global_batch=6", "checkpoint.every_samples=1200", "final_samples=0"]
OVERRIDES += ["ema.profiles=[constant, power]"]


def test_two_ranks_go_on_as_three(tmp_path: Path) -> None:
    """From a checkpoint that `checkpoint_now` asked for, as the later one has a flipped bit: one rank's losses."""
    (tmp_path / "recipe.yaml").write_text(SMALL_RECIPE)
    recipe, run = tmp_path / "recipe.yaml", RunDir(tmp_path / "changed")
    code, output = end(start(recipe, tmp_path / "alone", 1, overrides=OVERRIDES))
    assert code == 0, output

    process = start(recipe, run.root, 2, overrides=OVERRIDES)
    wait_until(lambda: len(losses(run.root)) >= 2, process)
    run.checkpoint_now.touch()
    wait_until(lambda: any(run.checkpoints.glob("step_*")), process)
    process.send_signal(signal.SIGTERM)
    code, output = end(process)
    assert code == 75, output
    first, last = sorted(run.checkpoints.glob("step_*"))
    manifest = json.loads((last / "MANIFEST.json").read_text())
    assert manifest["world_size"] == 2
    assert {len(row["pieces"]) for name, row in manifest["tensors"].items() if name.startswith("adam_m/")} == {1, 2}
    victim = last / "adam_v-00001-of-00002.safetensors"
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)

    process = start(recipe, run.root, 3, overrides=OVERRIDES)
    code, output = end(process)
    assert code == 0, output
    status = RankStatus.read(run.attempt(2).status(2))
    assert status is not None and status.phase == "done"
    assert [path.name.startswith(last.name) for path in (run.checkpoints / "quarantine").iterdir()] == [True]
    assert f"resumed from step {int(first.name[5:])}," in run.attempt(2).log(2).read_text()
    np.testing.assert_allclose(losses(run.root), losses(tmp_path / "alone"), rtol=1e-5)
