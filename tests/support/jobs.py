"""Starting real runs and looking at what they leave."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from PIL import Image

from launcher.contract.run_dir import RunDir
from launcher.planning.mpirun import ROOT_VARIABLES, find_mpirun
from support import CHECKOUT

DEADLINE_S = 240

# Trains in a second or two, once it is compiled.
SMALL_RECIPE = f"""
total_samples: 16
global_batch: 4
final_samples: 2
trainable: [unet, text_encoder]
data: {{path: {CHECKOUT / "data" / "fluent_emoji"}, resolution: 8}}
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


def free_ports(count: int) -> int:
    """The first of `count` ports in a row that are free now, from a place of this process's own on.

    Below those that the kernel hands out: others cannot take them before they are used.
    """
    own = os.getpid() % 1000
    for base in range(21000 + 8 * own, 31000, count):
        with ExitStack() as sockets:
            try:
                for port in range(base, base + count):
                    sockets.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return base
    raise AssertionError("no free ports")


def start(
    recipe: Path, run_dir: Path, workers: int, port: int | None = None, overrides: Sequence[str] = ()
) -> subprocess.Popen[str]:
    """`vpred-launch run`, in the folder of the recipe, where a folder called data must not get in the way."""
    (recipe.parent / "data").mkdir(exist_ok=True)
    (recipe.parent / "data" / "__init__.py").write_text("raise ImportError('the wrong data package')\n")
    argv = [sys.executable, "-P", "-m", "launcher.cli", "run", "--recipe", str(recipe), "--run-dir", str(run_dir)]
    argv += [f"cluster.workers_per_host={workers}"]
    argv += [f"cluster.metrics.base_port={port or free_ports(workers)}", *overrides]
    return subprocess.Popen(
        argv, cwd=recipe.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def lend_graphs(finished: Path, run_dir: Path) -> None:
    """Give a run that is to come the compiled graphs of one of the same recipe and number of ranks: time saved."""
    shutil.copytree(finished / "graphs", run_dir / "graphs")


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and output; a run that hangs is killed and fails the test."""
    try:
        output, _ = process.communicate(timeout=DEADLINE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, output


def losses(run_dir: Path) -> list[float]:
    path = RunDir(run_dir).metrics_jsonl
    return [json.loads(line)["loss"] for line in path.read_text().splitlines()] if path.exists() else []


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert process.poll() is None, f"the run ended too early:\n{process.communicate()[0]}"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def sample(*arguments: str, ranks: int = 1) -> list[Path]:
    """The images of one `vpred-sample`, in the order of their numbers."""
    argv = [sys.executable, "-P", "-m", "vpred_train.commands.sample", *arguments]
    if ranks > 1:
        mpirun = find_mpirun(None, os.environ)
        argv = [str(mpirun.path), "-np", str(ranks), *mpirun.dialect.oversubscribe, "--bind-to", "none", *argv]
    env = os.environ | (ROOT_VARIABLES if os.geteuid() == 0 else {})
    answer = subprocess.run(argv, capture_output=True, text=True, timeout=DEADLINE_S, env=env)
    assert answer.returncode == 0, answer.stderr
    return sorted(Path(line) for line in answer.stdout.split())


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def write_images(folder: Path, count: int) -> None:
    """A new folder of random captioned images, 16 pixels square."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    rows = ["dir,text"]
    for number in range(count):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)).save(folder / f"{number}.png")
        rows.append(f"{number}.png,picture {number}")
    (folder / "img_txt.csv").write_text("\n".join(rows) + "\n")
