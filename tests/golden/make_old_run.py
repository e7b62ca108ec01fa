"""Make old_run.tar.xz, a run that was stopped in the middle, its data and weights, and old_run.json, what it gave
when it went on.

    python tests/golden/make_old_run.py     # in the checkout whose run is to be kept; vpred 0.1.0 at 5f3acb7

The archive's train.yaml has FOLDER where data and weights were. old_run.json: the losses of all steps, and of the last
checkpoint what `sums` finds.
"""

import json
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from checkpoints_mgr import Checkpoint
from vpred_train.diffusion.parameterization import record_of
from vpred_train.prepare.recipe import load_recipe
from vpred_train.weights.layouts.read_write import write_weights
from vpred_train.weights.layouts.tensor_shapes import stability_shapes

ARCHIVE, EXPECTED = Path(__file__).with_name("old_run.tar.xz"), Path(__file__).with_name("old_run.json")
PLACEHOLDER = "FOLDER"
WEIGHTS = "weights.safetensors"
# The older checkpoint, and what a later attempt writes again or never reads.
LEFT_OUT = ("step_0000000001", "graphs", "*.log", "plan.json", "hostfile", "targets.json", "launcher.prom", "lock")
RECIPE = """
seed: 3
total_samples: 24
global_batch: 4
final_samples: 0
trainable: [unet]
data: {path: data, resolution: 8, horizontal_flip: true}
pretrained: {path: weights.safetensors, networks: [text_encoder]}
diffusion: {prediction_type: v}
model:
  vae: null
  space_to_depth: 2
  unet:
    in_channels: 12
    model_channels: 4
    channel_multipliers: [1]
    res_blocks: 1
    attention_levels: [0]
    head_channels: 4
    context_channels: 8
    norm_groups: 2
  text_encoder: {width: 8, heads: 1, layers: 1, context_length: 8}
optimizer: {learning_rate: 1e-2, epsilon: 1e-5}
schedule: {name: cosine, warmup_steps: 2}
ema: {profiles: [constant, power], sigma_rel: [0.1]}
checkpoint: {every_samples: 8}
"""


def write_inputs(folder: Path) -> None:
    """Six pictures with captions, weights and the recipe."""
    rng = np.random.default_rng(0)
    (folder / "data").mkdir()
    rows = ["dir,text"]
    for number in range(6):
        Image.fromarray(rng.integers(0, 256, (10, 12, 3)).astype(np.uint8)).save(folder / f"data/{number}.png")
        rows.append(f"{number}.png,picture number {number}")
    (folder / "data/img_txt.csv").write_text("\n".join(rows) + "\n")
    (folder / "recipe.yaml").write_text(RECIPE)
    config = load_recipe(folder / "recipe.yaml", without_weights=True)
    pattern = np.array([0.5, -0.25, 0.75, -1.0, 0.125, 1.0, -0.5], np.float32)  # short: the file packs well
    tensors = {name: np.resize(pattern, shape) for name, shape in stability_shapes(config.model).items()}
    write_weights(folder / WEIGHTS, tensors, "stability", record_of(config, None, 0))


def train(folder: Path, stopped_after: int | None) -> None:
    """To the end, or until so many steps are done and a signal has stopped it."""
    argv = [sys.executable, "-P", "-m", "launcher.cli", "run", "--recipe", "recipe.yaml", "--run-dir", "run"]
    process = subprocess.Popen([*argv, "cluster.workers_per_host=2"], cwd=folder, stdout=subprocess.DEVNULL)
    while stopped_after is not None and process.poll() is None:
        statuses = [json.loads(path.read_text()) for path in sorted(folder.glob("run/attempts/*/rank_0.status.json"))]
        if any(each["phase"] == "compiling" and each["step"] >= stopped_after for each in statuses[-1:]):
            process.send_signal(signal.SIGTERM)  # remembered while the first step is compiled
            break
        time.sleep(0.05)
    expected = 0 if stopped_after is None else 75
    if process.wait() != expected:
        raise SystemExit(f"the run ended with {process.returncode}, expected {expected}")


def sums(step: Path) -> dict[str, float]:
    """The sum of squares of each component; of an average's distance from the model."""
    checkpoint = Checkpoint.open(step)
    found = {}
    for component in checkpoint.manifest.components:
        total = 0.0
        for name in checkpoint.names(component):
            values = checkpoint.read(component, name).astype(np.float64)
            if component.startswith("ema_"):
                values -= checkpoint.read("model", name)
            total += float(np.square(values).sum())
        found[component] = total
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        write_inputs(folder)
        for stopped_after in (0, 1):  # while the step after them is compiled, which is still taken
            train(folder, stopped_after)
        kept = folder / "kept"
        shutil.copytree(folder / "run", kept / "run", ignore=shutil.ignore_patterns(*LEFT_OUT))
        for name in ("data", WEIGHTS):
            (folder / name).rename(kept / name)
        yaml = kept / "run/train.yaml"
        yaml.write_text(yaml.read_text().replace(str(folder), PLACEHOLDER))
        with tarfile.open(ARCHIVE, "w:xz") as archive:
            archive.add(kept, ".")
        for name in ("data", WEIGHTS):
            (kept / name).rename(folder / name)
        train(folder, None)
        lines = (folder / "run/metrics.jsonl").read_text().splitlines()
        losses = [json.loads(line)["loss"] for line in lines]
        expected = {"losses": losses, "sums": sums(max((folder / "run/checkpoints").glob("step_*")))}
        EXPECTED.write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
