"""MindONE's command line under a real mpirun: a narrow Stable Diffusion 2 from a .ckpt to ckpt/sd-N.ckpt."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from launcher.contract.run_dir import RunDir
from launcher.planning.mpirun import ROOT_VARIABLES, find_mpirun
from support.jobs import DEADLINE_S, losses, write_images
from support.weights_files import TINY_RECORD, write_tiny
from vpred_train.weights.layouts.read_write import read_weights
from vpred_train.weights.layouts.tensor_shapes import UNET
from vpred_train.weights.layouts.weight_source import open_source
from vpred_train.weights.lora.files import open_lora, read_factors

RECIPE = """
mode: 0
use_parallel: True
train_batch_size: 2
image_size: 16
filter_small_size: False
model_config: configs/v2-vpred-train.yaml
epochs: 9
use_ema: True
warmup_steps: 2
start_learning_rate: 1e-3
betas: [0.9, 0.98]
"""


def train(root: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Two ranks in `root`, as MindONE's user would start them."""
    mpirun = find_mpirun(None, os.environ)
    argv = [str(mpirun.path), "-np", "2", *mpirun.dialect.oversubscribe, "--bind-to", "none"]
    argv += [sys.executable, "-P", "-m", "vpred_train.train_text_to_image", "--train_config", "train.yaml"]
    argv += ["--data_path", "images", "--output_path", "out", "--pretrained_model_path", "sd.ckpt", *flags]
    env = os.environ | (ROOT_VARIABLES if os.geteuid() == 0 else {})
    return subprocess.run(argv, cwd=root, env=env, capture_output=True, text=True, timeout=DEADLINE_S)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with five captioned images, published weights, and MindONE's recipe."""
    root = tmp_path_factory.mktemp("mindone")
    write_tiny(root / "sd.ckpt", "mindone")
    write_images(root / "images", 5)
    (root / "train.yaml").write_text(RECIPE)
    return root


def test_mindones_command_trains_and_leaves_its_files(root: Path) -> None:
    run = RunDir(root / "out")
    run.mindone_ckpt.mkdir(parents=True)
    (run.mindone_ckpt / "sd-72.ckpt").write_text("another run's")
    ended = train(root, "--epochs", "12", "final_samples=0")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("note: use_parallel has no effect") == 1
    assert len(losses(run.root)) == 12  # five samples make one batch of four in each epoch
    kept = {path.name for path in run.mindone_ckpt.iterdir()}
    assert kept == {f"sd-{epoch}.ckpt" for epoch in (*range(3, 13), 72)}
    last = open_source(run.mindone_ckpt / "sd-12.ckpt")
    assert last.layout == "mindone"
    assert last.record is not None
    assert (last.record.average, last.record.samples_seen) == ("mindone", 48)
    published, trained = read_weights(root / "sd.ckpt"), read_weights(run.mindone_ckpt / "sd-12.ckpt")
    exported = read_weights(run.weights / "ema.safetensors")
    assert all(np.array_equal(trained[name], exported[name]) for name in trained)
    changed = {name for name in published if not np.array_equal(published[name], trained[name])}
    assert all(name.startswith(UNET) for name in changed)
    assert len(changed) > 0.9 * sum(name.startswith(UNET) for name in published)


def test_lora_is_written_as_mindone_names_it(root: Path) -> None:
    options = ["--output_path", "lora", "--use_lora", "True", "--epochs", "3", "--ckpt_save_interval", "2"]
    ended = train(root, *options, "final_samples=0")
    assert ended.returncode == 0, ended.stderr
    factors = RunDir(root / "lora").mindone_ckpt
    assert {path.name for path in factors.iterdir()} == {"sd-2.ckpt", "sd-3.ckpt"}
    source = open_lora(factors / "sd-3.ckpt")
    assert source.layout == "mindone"
    assert {factor.rank for factor in read_factors(source, TINY_RECORD.model).values()} == {4}
