"""Small stand-ins for what a reader of the documents has: images, published weights, a finished run, tables.

A page names them in a comment: <!-- setup: my_images weights -->. Each is made once in the page's folder.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from support import CHECKOUT
from support.jobs import free_ports, write_images
from support.weights_files import write_tiny

LAUNCH = Path(sys.executable).with_name("vpred-launch")
DEADLINE_S = 240

# A narrow Stable Diffusion 2 on eight images, two of them held out.
RECIPE = """
total_samples: 12
global_batch: 4
final_samples: 1
data: {path: my_images, resolution: 16}
pretrained: {path: stable-diffusion-2}
optimizer: {learning_rate: 1e-3}
ema: {profiles: [power], sigma_rel: [0.05, 0.1], snapshot_every_samples: 4}
checkpoint: {every_samples: 4}
sampling: {steps: 2, batch_size: 1}
validation: {every_samples: 4, count: 2}
"""

# MindONE's train_config_vanilla_v2_vpred.yaml, for small images.
MINDONE = """
mode: 0
use_parallel: True
train_batch_size: 2
image_size: 16
filter_small_size: False
model_config: configs/v2-vpred-train.yaml
epochs: 15
use_ema: True
warmup_steps: 2
start_learning_rate: 1e-5
betas: [0.9, 0.98]
"""

ASCEND = """
name: two_hosts
accelerator: ascend
hosts:
  - address: 10.0.0.1
    devices: [{id: 2, ip: 192.168.100.101}, {id: 3, ip: 192.168.101.101}]
  - address: 10.0.0.2
    devices: [{id: 2, ip: 192.168.100.102}, {id: 3, ip: 192.168.101.102}]
metrics: {address: 0.0.0.0}
"""


def my_images(folder: Path) -> None:
    write_images(folder / "my_images", 8)


def my_cat(folder: Path) -> None:
    write_images(folder / "my_cat", 3)


def weights(folder: Path) -> None:
    """The published files: a diffusers folder, and MindONE's .ckpt under both of its names."""
    write_tiny(folder / "stable-diffusion-2", "diffusers")
    write_tiny(folder / "sd_v2_768_v.ckpt", "mindone")
    shutil.copy(folder / "sd_v2_768_v.ckpt", folder / "sd_v2-1_768_v.ckpt")


def finished_run(folder: Path) -> None:
    """`runs/mine`: trained to its end with checkpoints, snapshots and a validation. Once for all pages, beside them."""
    finished = folder.parent / "finished"
    if not finished.exists():
        finished.mkdir()
        my_images(finished)
        weights(finished)
        (finished / "recipe.yaml").write_text(RECIPE)
        argv = [str(LAUNCH), "run", "--recipe", "recipe.yaml", "--run-dir", "runs/mine"]
        argv.append(f"cluster.metrics.base_port={free_ports(2)}")
        answer = subprocess.run(argv, cwd=finished, capture_output=True, text=True, timeout=DEADLINE_S)
        assert answer.returncode == 0, answer.stderr
    shutil.copytree(finished / "runs", folder / "runs")


def ascend_cluster(folder: Path) -> None:
    (folder / "my.yaml").write_text(ASCEND)


def rank_tables(folder: Path) -> None:
    """`n1.json` and `n2.json`: of each host by itself."""
    both = folder / "of_both.json"
    _ranktable(folder, "generate", "--cluster", "my.yaml", "--output", str(both))
    for number in (1, 2):
        _ranktable(folder, "subset", str(both), "--include", f"10.0.0.{number}", "--output", f"n{number}.json")


def controller_table(folder: Path) -> None:
    """`user_config/jobstart_hccl.json`, a table without a version, as a controller leaves it."""
    devices = [{"device_id": str(number), "device_ip": f"192.168.{number}.101"} for number in range(2)]
    instance = {"pod_name": "job-0", "server_id": "10.0.0.1", "devices": devices}
    group = {"group_name": "worker", "device_count": "2", "instance_count": "1", "instance_list": [instance]}
    (folder / "user_config").mkdir()
    table = {"status": "completed", "group_count": "1", "group_list": [group]}
    (folder / "user_config" / "jobstart_hccl.json").write_text(json.dumps(table))


def mindone_recipe(folder: Path) -> None:
    (folder / "train_config_vanilla_v2_vpred.yaml").write_text(MINDONE)


def checkout(folder: Path) -> None:
    """What the commands name of the checkout. The script is started where it lies, beside its .venv."""
    script = folder / "run_distributed.sh"
    script.write_text(f'#!/usr/bin/env bash\nexec "{CHECKOUT}/run_distributed.sh" "$@"\n')
    script.chmod(0o755)
    (folder / ".venv").mkdir()
    for part in ("bin", "lib", "pyvenv.cfg"):
        (folder / ".venv" / part).symlink_to(Path(sys.executable).parents[1] / part)
    (folder / "cluster_configs").symlink_to(CHECKOUT / "cluster_configs")
    (folder / "vpred_train").mkdir()
    (folder / "vpred_train" / "recipes").symlink_to(CHECKOUT / "vpred_train" / "recipes")


def _ranktable(folder: Path, *arguments: str) -> None:
    argv = [str(LAUNCH), "ranktable", *arguments]
    subprocess.run(argv, cwd=folder, check=True, capture_output=True, timeout=DEADLINE_S, env=os.environ)


STAND_INS: dict[str, Callable[[Path], None]] = {
    "my_images": my_images,
    "my_cat": my_cat,
    "weights": weights,
    "finished_run": finished_run,
    "ascend_cluster": ascend_cluster,
    "rank_tables": rank_tables,
    "controller_table": controller_table,
    "mindone_recipe": mindone_recipe,
}
