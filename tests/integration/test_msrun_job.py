"""Training under msrun, where MindSpore's own communication (MCCL on CPU) takes the place of MPI."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from jobs import DEADLINE_S, losses
from msrun_job import msrun

from launcher.contract.run_dir import RunDir, Summary

RECIPE = f"""
total_samples: 16
global_batch: 4
final_samples: 2
trainable: [unet, text_encoder]
data: {{path: {Path(__file__).parents[2] / "data" / "fluent_emoji"}, resolution: 8}}
model:
  vae: null
  space_to_depth: 2
  unet:
    in_channels: 12
    model_channels: 8
    channel_multipliers: [1]
    res_blocks: 1
    attention_levels: [0]
    head_channels: 8
    context_channels: 16
    norm_groups: 4
  text_encoder: {{width: 16, heads: 2, layers: 1, context_length: 8}}
optimizer: {{learning_rate: 1e-3}}
checkpoint: {{every_samples: 8}}
sampling: {{steps: 2, batch_size: 1}}
"""


def test_two_ranks_under_msrun_train_like_one(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    train = ["-P", "-m", "vpred_train", "--recipe", str(tmp_path / "recipe.yaml"), "--run-dir"]
    alone, both = tmp_path / "alone", tmp_path / "both"
    subprocess.run([sys.executable, *train, str(alone)], cwd=tmp_path, check=True, timeout=DEADLINE_S)
    code, logs = msrun(2, [*train, str(both)], tmp_path)
    assert code == 0, logs
    assert Summary.read(RunDir(both).summary_json).steps == 4
    assert len(losses(both)) == 4
    np.testing.assert_allclose(losses(both), losses(alone), rtol=0, atol=1e-5)


def test_a_mistake_in_the_recipe_ends_all_of_msrun(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("global_batch: 4", "global_batch: 1"))
    train = ["-P", "-m", "vpred_train", "--recipe", str(tmp_path / "recipe.yaml"), "--run-dir", str(tmp_path / "run")]
    code, logs = msrun(2, train, tmp_path)
    assert code != 0
    assert "found 1 for 2 ranks" in logs[0] + logs[1]
