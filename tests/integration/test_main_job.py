"""The real thing, small: mpirun starts ranks that train, are stopped and killed, resume, sample and report."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from safetensors import safe_open
from safetensors.numpy import load_file

from data import open_source
from launcher.contract.run_dir import RankStatus, RunDir, Summary
from support.command_lines import exit_code
from support.jobs import end, free_ports, lend_graphs, losses, pixels, sample, start, wait_until
from vpred_train.commands.checkpoint import main as consolidate
from vpred_train.commands.weights import main as compare
from vpred_train.weights.layouts.read_write import read_weights

STEPS = 20
RECIPE = """
total_samples: 120
global_batch: 6
trainable: [unet, text_encoder]
data: {path: images, resolution: 16, crop: random, horizontal_flip: true, caption_drop: 0.2}
model:
  vae: null
  space_to_depth: 2
  unet:
    in_channels: 12
    model_channels: 8
    channel_multipliers: [1]
    res_blocks: 1
    attention_levels: []
    head_channels: 8
    context_channels: 16
    norm_groups: 4
  text_encoder: {width: 16, heads: 2, layers: 1, context_length: 8}
optimizer: {learning_rate: 1e-3}
schedule: {warmup_samples: 30}
ema: {profiles: [constant, power], snapshot_every_samples: 30}
checkpoint: {every_samples: 30}
sampling: {steps: 3, batch_size: 3}
validation: {every_samples: 30, count: 3, bins: 2, batch_size: 1}
previews: {every_samples: 60, count: 2}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe beside six images of two colours each."""
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    lines = ["dir,text"]
    for number in range(6):
        pixels = np.kron(rng.integers(0, 256, (2, 2, 3)), np.ones((9, 11, 1))).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        lines.append(f"{number}.png,picture number {number}")
    (folder / "images" / "img_txt.csv").write_text("\n".join(lines) + "\n")
    (folder / "small.yaml").write_text(RECIPE)
    return folder / "small.yaml"


def held_out_losses(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in RunDir(run_dir).validation_jsonl.read_text().splitlines()]


# The training alone; what it leaves beside losses and weights is looked at in the run of two ranks.
SPARE = ("previews=null", "final_samples=0")


def finished(recipe: Path, run_dir: Path, ranks: int, *overrides: str) -> Path:
    code, output = end(start(recipe, run_dir, ranks, overrides=overrides))
    assert code == 0, output
    return run_dir


@pytest.fixture(scope="module")
def runs(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Finished runs of one recipe, by their number of ranks."""
    folder = tmp_path_factory.mktemp("runs")
    return {ranks: finished(recipe, folder / str(ranks), ranks, *SPARE * (ranks != 2)) for ranks in (1, 2, 3)}


@pytest.fixture(scope="module")
def undisturbed(runs: dict[int, Path]) -> Path:
    """A finished run of two ranks."""
    return runs[2]


def test_one_two_and_three_ranks_have_the_same_losses(runs: dict[int, Path]) -> None:
    one, of_one = np.array(losses(runs[1])), held_out_losses(runs[1])
    assert len(one) == STEPS
    for ranks in (2, 3):
        difference = np.abs(losses(runs[ranks]) / one - 1).max()
        print(f"largest relative difference of the losses of 1 and {ranks} ranks: {difference:.1e}")
        assert difference < 1e-5
        found = held_out_losses(runs[ranks])
        assert found[:6] == of_one[:6]  # before the first step: the same noise, the same weights
        for record, other in zip(found, of_one, strict=True):
            numbers = ("loss", "standard_error")
            assert [record[key] for key in numbers] == pytest.approx([other[key] for key in numbers], rel=1e-4)
            assert record | dict.fromkeys(numbers) == other | dict.fromkeys(numbers)


def test_an_objective_with_everything_on_is_the_same_for_one_rank_and_two(recipe: Path, tmp_path: Path) -> None:
    overrides = [
        "total_samples=12",
        "schedule.warmup_samples=0",
        "validation=null",
        *SPARE,
        "diffusion.zero_terminal_snr=true",
        "objective={weight: min_snr, terminal_floor: 0.1, offset_noise: 0.1, input_perturbation: 0.1, "
        "timestep_distribution: logit_normal, logit_mean: 0.2, stratified_timesteps: true}",
    ]
    for ranks in (1, 2):
        finished(recipe, tmp_path / str(ranks), ranks, *overrides)
    one, two = (losses(tmp_path / str(ranks)) for ranks in (1, 2))
    assert len(two) == 2
    np.testing.assert_allclose(one, two, rtol=1e-5)
    logs = [RunDir(tmp_path / "2").attempt(1).log(rank).read_text() for rank in (0, 1)]
    assert ["objective min_snr: weight on v (samples) by log SNR: [-inf, -4) " in log for log in logs] == [True, False]


def exported(run_dir: Path) -> dict[str, np.ndarray]:
    """All tensors of all the weights that a run has left, by file and name."""
    return {
        f"{path.name}/{name}": tensor
        for path in RunDir(run_dir).weights.iterdir()
        for name, tensor in load_file(path).items()
    }


def furthest(left: Path, right: Path) -> float:
    """The largest difference of two runs' weights and averages."""
    one, other = exported(left), exported(right)
    assert one.keys() == other.keys()
    return max(float(np.abs(one[key] - other[key]).max()) for key in one)


def test_sharded_moments_change_no_result(recipe: Path, runs: dict[int, Path], tmp_path: Path) -> None:
    """ZeRO on three ranks, whose shares differ in length, against every rank keeping everything: 20 steps, whose sums
    have another order; a wrong share would be off by the learning rate, 1e-3."""
    whole = finished(recipe, tmp_path / "whole", 3, *SPARE, "zero_stage=0", "validation.every_samples=120")
    np.testing.assert_allclose(losses(runs[3]), losses(whole), rtol=1e-6)
    print(f"3 ranks: weights and averages within {furthest(runs[3], whole):.1e} of those of replicated moments")
    assert furthest(runs[3], whole) < 1e-5


def test_micro_batches_of_replicated_ranks_change_no_result(
    recipe: Path, runs: dict[int, Path], tmp_path: Path
) -> None:
    """Against whole shares with ZeRO, over 20 steps: the sums have another order."""
    overrides = ["zero_stage=0", "gradient_accumulation_steps=3", "validation.every_samples=120"]
    parts = finished(recipe, tmp_path / "run", 2, *overrides, *SPARE)
    np.testing.assert_allclose(losses(parts), losses(runs[2]), rtol=1e-6)
    assert furthest(parts, runs[2]) < 1e-5


def test_a_killed_run_goes_on_bit_for_bit_and_alike_on_three_ranks(
    recipe: Path, runs: dict[int, Path], tmp_path: Path
) -> None:
    killed, on_three = tmp_path / "killed", tmp_path / "three"
    lend_graphs(runs[1], killed)
    process = start(recipe, killed, 1, overrides=SPARE)
    # The checkpoint of step 5 is written behind the steps that follow.
    saved = RunDir(killed).checkpoints
    wait_until(lambda: len(losses(killed)) >= 7 and any(saved.glob("step_*")), process)
    rank = RankStatus.read(RunDir(killed).attempt(1).status(0))
    assert rank is not None
    os.kill(rank.pid, signal.SIGKILL)
    code, output = end(process)
    assert code == 128 + signal.SIGKILL, output
    shutil.copytree(killed, on_three, ignore=shutil.ignore_patterns("graphs"))
    lend_graphs(runs[3], on_three)

    finished(recipe, killed, 1, *SPARE)
    assert losses(killed) == losses(runs[1])
    for path in sorted(RunDir(runs[1]).weights.iterdir()):
        assert (RunDir(killed).weights / path.name).read_bytes() == path.read_bytes()
    finished(recipe, on_three, 3, *SPARE)
    assert re.search(r"resumed from step (5|10|15), ", RunDir(on_three).attempt(2).log(2).read_text())
    np.testing.assert_allclose(losses(on_three), losses(runs[1]), rtol=1e-5)


def test_a_run_that_diverges_names_ranks_and_rows_and_ends_with_76(recipe: Path, tmp_path: Path) -> None:
    overrides = ["optimizer.learning_rate=1e30", "schedule.warmup_samples=0", "max_nonfinite_steps=2"]
    overrides += ["previews=null", "validation=null"]
    code, output = end(start(recipe, tmp_path / "run", 2, overrides=overrides))
    assert code == 76, output
    log = RunDir(tmp_path / "run").attempt(1).log(0).read_text()
    rows = r"samples \d \(img_txt\.csv:\d\), \d \(img_txt\.csv:\d\), \d \(img_txt\.csv:\d\)"
    for step in (2, 3):
        assert re.search(rf"step {step}: loss nan, .*update skipped; not finite: rank 0, {rows}; rank 1, {rows}\n", log)
    assert "diverged: loss or gradient not finite in 2 steps in a row, the last is 3" in log


def scraped(run: RunDir, attempt: int, rank: int) -> dict[str, Metric]:
    """The metrics of a rank that trains, by name, at the port that its status file gives."""
    status = RankStatus.read(run.attempt(attempt).status(rank))
    assert status is not None
    with urllib.request.urlopen(f"http://127.0.0.1:{status.metrics_port}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return {family.name: family for family in families if family.samples}


def test_a_run_that_is_stopped_then_killed_ends_as_if_undisturbed(
    recipe: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run_dir, port = tmp_path / "disturbed", free_ports(4)
    run = RunDir(run_dir)

    lend_graphs(undisturbed, run_dir)
    with socket.create_server(("127.0.0.1", port + 1)):  # another program's: rank 1 takes its next port
        process = start(recipe, run_dir, 2, port)
        wait_until(lambda: len(losses(run_dir)) >= 3, process)
    first, second = scraped(run, 1, 0), scraped(run, 1, 1)
    process.send_signal(signal.SIGTERM)
    code, output = end(process)
    assert code == 75, output
    stopped_at = len(losses(run_dir))
    assert 3 <= stopped_at < STEPS
    assert (run.checkpoints / f"step_{stopped_at:010d}" / "MANIFEST.json").exists()
    (sample,) = first["vpred_loss"].samples
    assert any(abs(sample.value - loss) < 1e-6 for loss in losses(run_dir))
    (sample,) = second["vpred_samples"].samples
    labels = {"run": "disturbed", "rank": "1", "local_rank": "1", "device_id": "1", "hostname": socket.gethostname()}
    assert sample.labels == labels and sample.value >= 3 * 3
    assert "vpred_last_checkpoint_timestamp_seconds" not in first
    stopped_unix_s = time.time()

    process = start(recipe, run_dir, 2)
    wait_until(lambda: len(losses(run_dir)) >= stopped_at + 1, process)
    (sample,) = scraped(run, 2, 0)["vpred_last_checkpoint_timestamp_seconds"].samples
    assert stopped_unix_s - 60 < sample.value < stopped_unix_s  # a crash loop must not look young
    wait_until(lambda: len(losses(run_dir)) >= max(12, stopped_at + 1), process)
    victim = RankStatus.read(run.attempt(2).status(1))
    assert victim is not None
    os.kill(victim.pid, signal.SIGKILL)
    code, output = end(process)
    assert code == 128 + signal.SIGKILL, output
    for fragment in ("rank 1 on", "SIGKILL", "after step", "rank_1.log"):
        assert fragment in output

    code, output = end(start(recipe, run_dir, 2))
    assert code == 0, output
    assert losses(run_dir) == losses(undisturbed)
    # Someone who stops a run gets its checkpoint at once, and no look at it first.
    expected = [record for record in held_out_losses(undisturbed) if record["step"] != stopped_at]
    assert held_out_losses(run_dir) == expected
    for folder in ("weights", "snapshots"):
        files = sorted((undisturbed / folder).iterdir())
        assert [path.name for path in sorted((run_dir / folder).iterdir())] == [path.name for path in files]
        for path in files:
            assert (run_dir / folder / path.name).read_bytes() == path.read_bytes()


def test_what_a_finished_run_leaves(recipe: Path, undisturbed: Path) -> None:
    run = RunDir(undisturbed)
    summary = Summary.read(run.summary_json)
    assert summary is not None
    assert (summary.steps, summary.samples_seen) == (STEPS, 120)
    assert summary.retrieval is not None
    with Image.open(run.grids / "grid_0.png") as grid:
        assert grid.size[0] > 500
    assert sorted(path.name for path in run.grids.iterdir()) == [
        "grid_0.png",
        *sorted(f"step-{n}.png" for n in (0, 10, 20)),
    ]
    samples = sorted(run.samples.iterdir())
    assert [path.name for path in samples] == [f"{number:05d}.png" for number in range(len(samples))]
    assert {pixels(path).shape for path in samples} == {(16, 16, 3)}
    report = run.report_html.read_text()
    assert report.count("data:image/png;base64,") == 1
    assert "Held-out loss" in report and "held-out loss, raw weights, timesteps 500 to 999" in report
    assert [record["step"] for record in held_out_losses(undisturbed)[::6]] == [0, 5, 10, 15, 20]
    for step in (0, 10, 20):
        assert pixels(run.grids / f"step-{step}.png").shape == (16, 32, 3)
    with safe_open(run.weights / "ema.safetensors", framework="np") as file:
        record = json.loads(file.metadata()["parameterization"])
    assert (record["weights"], record["samples_seen"], record["diffusion"]["prediction_type"]) == ("ema", 120, "v")
    assert record["average"] == "constant"
    exported = {path.name for path in run.weights.iterdir()}
    assert exported == {f"{name}.safetensors" for name in ("raw", "ema", "ema_power_0.05", "ema_power_0.1")}
    assert len(list(run.snapshots.iterdir())) == 2 * 4
    assert json.loads(run.targets_json.read_text()) == []  # they must not claim the next run's metrics
    code, output = end(start(recipe, undisturbed, 2))
    assert code == 0
    assert "complete" in output
    assert len(open_source(recipe.parent / "images")) == 6


def test_an_average_of_another_width_is_made_afterwards(undisturbed: Path, tmp_path: Path) -> None:
    """And a tracked width comes back as the run exported it, up to the rounding of its float16 snapshots."""
    for sigma_rel in ("0.07", "0.1"):
        argv = [sys.executable, "-P", "-m", "vpred_train.commands.ema", str(undisturbed), "--sigma-rel", sigma_rel]
        answer = subprocess.run([*argv, "--output", str(tmp_path / f"{sigma_rel}.safetensors")], capture_output=True)
        assert answer.returncode == 0, answer.stderr
    made, exported = (
        read_weights(path)
        for path in (tmp_path / "0.1.safetensors", RunDir(undisturbed).weights / "ema_power_0.1.safetensors")
    )
    for name, tensor in exported.items():
        np.testing.assert_allclose(made[name], tensor, rtol=2**-11, atol=2**-24)
    options = ["--ckpt", str(tmp_path / "0.07.safetensors"), "--prompt", "picture number 1"]
    assert pixels(*sample(*options, "--output", str(tmp_path))).shape == (16, 16, 3)


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_checkpoint_consolidated_is_what_the_run_exported(
    runs: dict[int, Path], tmp_path: Path, ranks: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights whole on each rank, and averages put together from the ranks' shards."""
    run = RunDir(runs[ranks])
    for weights, exported in (("raw", "raw"), ("ema", "ema"), ("power_0.1", "ema_power_0.1")):
        for layout, name in (("mindone", f"{weights}.ckpt"), ("stability", f"{weights}.safetensors")):
            output, other = tmp_path / name, run.weights / f"{exported}.safetensors"
            for main, argv in (
                (consolidate, ["consolidate", run.checkpoints, output, "--format", layout, "--weights", weights]),
                (compare, ["compare", output, other]),
            ):
                assert exit_code(main, *argv) == 0, capsys.readouterr()


def test_an_image_depends_on_nothing_but_its_request(undisturbed: Path, tmp_path: Path) -> None:
    """Not on the rank, nor on its place in the batch; and a PNG is enough to make it again, bit for bit."""
    prompts = [word for number in range(5) for word in ("--prompt", f"picture number {number}")]
    options = ["--run", str(undisturbed), "--batch-size", "2", "--height", "20", "--negative-prompt", "blue"]
    grids = [tmp_path / f"{folder}.png" for folder in ("alone", "shared")]
    alone = sample(*options, *prompts, "--output", str(tmp_path / "alone"), "--grid", str(grids[0]))
    shared = sample(*options, *prompts, "--output", str(tmp_path / "shared"), "--grid", str(grids[1]), ranks=2)
    assert sorted(path.name for path in (tmp_path / "shared").iterdir()) == [f"{n:05d}.png" for n in range(5)]
    assert [path.name for path in alone] == [path.name for path in shared] == [f"{n:05d}.png" for n in range(5)]
    assert [path.read_bytes() for path in alone] == [path.read_bytes() for path in shared]
    assert len({pixels(path).tobytes() for path in alone}) == 5
    assert pixels(alone[0]).shape == (20, 16, 3)
    assert pixels(grids[0]).shape == (40, 48, 3)
    assert grids[0].read_bytes() == grids[1].read_bytes()
    np.testing.assert_array_equal(pixels(grids[0])[20:, 16:32], pixels(alone[4]))

    (again,) = sample("--like", str(alone[3]), "--output", str(tmp_path / "alone"))
    assert again.name == "00005.png"
    assert again.read_bytes() == alone[3].read_bytes()
    unguided = sample(*options[:-2], *prompts[:2], "--output", str(tmp_path / "plain"))
    assert (pixels(unguided[0]) != pixels(alone[0])).any()
