"""Averages made of snapshots against directly tracked ones, and what `vpred-ema` refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launcher.contract.config import dump_yaml
from launcher.contract.run_dir import RunDir
from support.weights_files import TINY, TINY_RECORD
from vpred_train.commands.ema import main
from vpred_train.config.optimizer import EmaConfig
from vpred_train.ema.profiles import average_, decays, gamma_of
from vpred_train.ema.reconstruction import Profile, combine, inner_products, solve
from vpred_train.ema.snapshots import find_snapshots, write_snapshot
from vpred_train.prepare.recipe import load_recipe
from vpred_train.weights.layouts.read_write import read_weights, write_weights
from vpred_train.weights.layouts.tensor_shapes import UNET, stability_shapes
from vpred_train.weights.layouts.weight_source import open_source

BATCH, STEPS, EVERY = 16, 400, 50  # a snapshot after every 50 steps
TRACKED = EmaConfig(profiles=("power",), sigma_rel=(0.05, 0.1))
SHAPES = {name: shape for name, shape in stability_shapes(TINY).items() if name.startswith(UNET)}
RECIPE = """
total_samples: 6400
global_batch: 16
data: {path: images, resolution: 16}
optimizer: {learning_rate: 1e-3}
ema: {profiles: [power], snapshot_every_samples: 800}
checkpoint: {every_samples: 800}
pretrained: {path: sd.safetensors}
"""


def tensors_of(flat: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    parts = np.split(flat, np.cumsum([int(np.prod(shape)) for shape in SHAPES.values()])[:-1])
    return {name: part.reshape(shape) for part, (name, shape) in zip(parts, SHAPES.items(), strict=True)}


def walk(run: RunDir, dtype: Any) -> dict[str, np.ndarray[Any, Any]]:
    """A random walk of all UNet weights; snapshots of two widths, and the average of 0.07 tracked directly."""
    size = sum(int(np.prod(shape)) for shape in SHAPES.values())
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(size, np.float32)
    everything = EmaConfig(profiles=("power",), sigma_rel=(0.05, 0.07, 0.1))
    averages = {name: weights.copy() for name in everything.names}
    for step in range(1, STEPS + 1):
        weights += np.float32(0.1) * rng.standard_normal(size, np.float32)
        for name, decay in decays(everything, step, (step - 1) * BATCH, step * BATCH).items():
            average_(averages[name], weights, decay)
        if step % EVERY == 0:
            for sigma_rel, name in zip(TRACKED.sigma_rel, TRACKED.names, strict=True):
                record = TINY_RECORD.model_copy(update={"samples_seen": step * BATCH, "average": name})
                write_snapshot(run.snapshots, sigma_rel, tensors_of(averages[name]), dtype, record)
    return averages | {"raw": weights}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDir, dict[str, np.ndarray[Any, Any]]]:
    """A run directory with float32 snapshots, beside the published weights it began with; the true averages."""
    root = tmp_path_factory.mktemp("ema")
    rng = np.random.default_rng(1)
    published = {name: rng.standard_normal(shape, np.float32) for name, shape in stability_shapes(TINY).items()}
    write_weights(root / "sd.safetensors", published, "stability", TINY_RECORD)
    (root / "recipe.yaml").write_text(RECIPE)
    run = RunDir(root / "run")
    run.root.mkdir()
    run.train_yaml.write_text(dump_yaml(load_recipe(root / "recipe.yaml")))
    return run, walk(run, "float32")


def ends_with(code: int, *arguments: object) -> None:
    with pytest.raises(SystemExit) as caught:
        main([str(each) for each in arguments])
    assert caught.value.code == code


def relative_error(found: Any, truth: dict[str, np.ndarray[Any, Any]], name: str) -> float:
    """Of an average, as a share of its distance from the last weights."""
    flat = np.concatenate([found[tensor].reshape(-1) for tensor in SHAPES])
    return float(np.linalg.norm(flat - truth[name]) / np.linalg.norm(truth["raw"] - truth[name]))


def test_inner_products_equal_quadrature() -> None:
    profiles = [Profile(0.05, 40), Profile(0.1, 100), Profile(0.25, 70)]
    t = (np.arange(400_000) + 0.5) / 4000
    curves = []
    for sigma_rel, until in profiles:
        curve = np.where(t <= until, t ** gamma_of(sigma_rel), 0)
        curves.append(curve / curve.sum() * 4000)
    expected = [[(one * other).sum() / 4000 for other in curves] for one in curves]
    np.testing.assert_allclose(inner_products(profiles, profiles), expected, rtol=1e-3)


def test_more_snapshots_come_nearer() -> None:
    errors = []
    for count in (4, 8, 16, 64):
        tracked = [Profile(width, 100 * time) for time in range(1, count + 1) for width in (0.05, 0.1)]
        coefficients, residual = solve(tracked, Profile(0.07, 100 * count))
        assert coefficients.sum() == pytest.approx(1)
        errors.append(residual)
    assert errors == sorted(errors, reverse=True)
    assert errors[1] < 0.02
    assert errors[-1] < 3e-4


def test_vpred_ema_makes_the_average_that_was_not_tracked(
    made: tuple[RunDir, dict[str, np.ndarray[Any, Any]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, truth = made
    output = tmp_path / "made.safetensors"
    ends_with(0, run.root, "--sigma-rel", 0.07, "--output", output, "--json")
    report = json.loads(capsys.readouterr().out)
    assert (report["samples_seen"], len(report["snapshots"])) == (6400, 16)
    assert sum(each["coefficient"] for each in report["snapshots"]) == pytest.approx(1)
    assert 0 < report["residual"] < 0.02
    weights, published = read_weights(output), read_weights(run.root.with_name("sd.safetensors"))
    error = relative_error(weights, truth, "power_0.07")
    nearest = relative_error(tensors_of(truth["power_0.05"]), truth, "power_0.07")
    print(f"reconstructed 0.07: error {error:.1e}; the nearest tracked one is off by {nearest:.1e}")
    assert error < 0.01 < 0.2 < nearest
    for name in published:
        if name not in SHAPES:
            np.testing.assert_array_equal(weights[name], published[name])
    record = open_source(output).record
    assert record == TINY_RECORD.model_copy(update={"samples_seen": 6400, "average": "power_0.07"})


def test_a_tracked_width_comes_back_as_it_was(
    made: tuple[RunDir, dict[str, np.ndarray[Any, Any]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, truth = made
    ends_with(0, run.root, "--sigma-rel", 0.1, "--output", tmp_path / "a.safetensors")
    assert "sigma_rel 0.1 at 6400 samples, of 16 snapshots" in capsys.readouterr().out
    found = read_weights(tmp_path / "a.safetensors")
    for name, expected in tensors_of(truth["power_0.1"]).items():
        np.testing.assert_array_equal(found[name], expected)
    ends_with(0, run.root, "--sigma-rel", 0.1, "--at-samples", 3200, "--output", tmp_path / "b.safetensors")
    (earlier,) = [each for each in find_snapshots(run.snapshots) if (each.sigma_rel, each.samples_seen) == (0.1, 3200)]
    found = read_weights(tmp_path / "b.safetensors")
    for name, tensor in earlier.stored.items():
        np.testing.assert_array_equal(found[name], tensor.float32())


def test_half_precision_halves_the_files_and_costs_little(
    made: tuple[RunDir, dict[str, np.ndarray[Any, Any]]], tmp_path: Path
) -> None:
    run = RunDir(tmp_path)
    truth = walk(run, "float16")
    snapshots = find_snapshots(run.snapshots)
    whole = find_snapshots(made[0].snapshots)[0].path.stat().st_size
    assert snapshots[0].path.stat().st_size < 0.6 * whole
    coefficients, _ = solve([Profile(each.sigma_rel, each.samples_seen) for each in snapshots], Profile(0.07, 6400))
    assert relative_error(combine(snapshots, coefficients), truth, "power_0.07") < 0.01
    with pytest.raises(ValueError, match=r"a is too large for float16; set ema\.snapshot_dtype to float32"):
        write_snapshot(tmp_path, 0.1, {"a": np.full(3, 7e4, np.float32)}, "float16", TINY_RECORD)


def refused(capsys: pytest.CaptureFixture[str], run: RunDir, *arguments: object) -> str:
    """The one line of a refusal."""
    ends_with(2, run.root, "--output", run.root / "new.safetensors", *arguments)
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1
    assert not (run.root / "new.safetensors").exists()
    return message


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str], made: tuple[RunDir, Any]) -> None:
    original, run = made[0], RunDir(tmp_path / "run")
    width = ("--sigma-rel", 0.07)
    assert "train.yaml: cannot be read" in refused(capsys, run, *width)
    run.root.mkdir()
    run.train_yaml.write_text(original.train_yaml.read_text())
    assert "snapshots: no snapshots; they are kept by a run with" in refused(capsys, run, *width)
    run.snapshots.mkdir()
    for path in original.snapshots.glob("power_0.05-*"):
        (run.snapshots / path.name).write_bytes(path.read_bytes())
    assert "snapshots of sigma_rel 0.05 alone; two widths are needed" in refused(capsys, run, *width)
    assert "found 0.5; give a width above 0 and up to 0.28" in refused(capsys, run, "--sigma-rel", 0.5)
    assert "found 7; there are snapshots at 800, 1600, 2400" in refused(capsys, run, *width, "--at-samples", 7)

    other = run.snapshots / "power_0.1-0000006400.safetensors"
    sound = (original.snapshots / other.name).read_bytes()
    other.write_bytes(sound[:-2] + bytes([sound[-2] ^ 1]) + sound[-1:])
    assert f"{other}: digest mismatch" in refused(capsys, run, *width)
    other.write_bytes(sound[:-2])
    assert f"{other}: damaged" in refused(capsys, run, *width)
    other.write_bytes(sound)
    (run.snapshots / "z.safetensors").write_bytes(sound)
    assert "z.safetensors" in (message := refused(capsys, run, *width))
    assert "the same average as" in message
    (run.snapshots / "z.safetensors").write_bytes((original.root.with_name("sd.safetensors")).read_bytes())
    assert "z.safetensors: no snapshot of an average" in refused(capsys, run, *width)
    (run.snapshots / "z.safetensors").unlink()
    foreign = TINY_RECORD.model_copy(update={"resolution": 32, "average": "power_0.1", "samples_seen": 5600})
    write_snapshot(run.snapshots, 0.1, tensors_of(made[1]["raw"]), "float32", foreign)
    assert "of another training than" in refused(capsys, run, *width)

    taken = tmp_path / "taken.safetensors"
    taken.touch()
    ends_with(2, original.root, *width, "--output", taken)
    assert "taken.safetensors: exists already; give a new path" in capsys.readouterr().err


def test_frozen_networks_come_from_the_file_that_training_began_with(
    made: tuple[RunDir, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made[0]
    published = run.root.with_name("sd.safetensors")
    before = published.read_bytes()
    try:
        published.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        assert "sd.safetensors: xxh3 is" in refused(capsys, run, "--sigma-rel", 0.07)
    finally:
        published.write_bytes(before)
