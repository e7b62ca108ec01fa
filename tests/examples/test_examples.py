"""Each program of docs/examples, run as its first lines say, on little data."""

import csv
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support import CHECKOUT
from support.jobs import DEADLINE_S, SMALL_RECIPE, pixels
from vpred_train.diffusion.parameterization import record_of
from vpred_train.prepare.recipe import load_recipe
from vpred_train.weights.layouts.read_write import write_weights
from vpred_train.weights.layouts.tensor_shapes import stability_shapes

EXAMPLES = CHECKOUT / "docs" / "examples"
MOST_LINES = 40


def run(name: str, *words: str | Path) -> str:
    """What the example prints; it must end well."""
    argv = [sys.executable, EXAMPLES / name, *words]
    answer = subprocess.run(argv, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert answer.returncode == 0, answer.stderr
    assert "imported already" not in answer.stderr  # MindSpore, before its settings
    return answer.stdout


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(SMALL_RECIPE)
    return path


@pytest.fixture(scope="module")
def trained(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What custom_hook.py leaves of a run of four steps."""
    folder = tmp_path_factory.mktemp("trained")
    run("custom_hook.py", recipe, folder)
    return folder


def tensors(run_dir: Path) -> dict[str, str]:
    """What read_checkpoint.py says of each tensor, by its name."""
    first, *lines = run("read_checkpoint.py", run_dir / "checkpoints").splitlines()
    assert first == "step 4, written by 1 ranks, 16 samples"
    return dict(line.split(": ") for line in lines)


def test_every_example_is_short_and_has_a_test() -> None:
    texts = {path.name: path.read_text() for path in EXAMPLES.glob("*.py")}
    tests = Path(__file__).read_text()
    assert len(texts) >= 5
    assert [name for name in texts if f'run("{name}"' not in tests] == []
    assert [name for name, text in texts.items() if len(text.splitlines()) > MOST_LINES] == []


def test_a_hook_sees_every_step(trained: Path) -> None:
    with (trained / "loss.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert all(math.isfinite(float(row[key])) for row in rows for key in ("loss", "grad_norm"))


def test_another_loss_weight_trains_other_weights(recipe: Path, trained: Path, tmp_path: Path) -> None:
    run("custom_loss_weight.py", recipe, tmp_path, "log_every_steps=1")
    one, other = tensors(trained), tensors(tmp_path)
    assert one.keys() == other.keys()
    assert sum(one[name] != other[name] for name in one) > len(one) / 2


def test_images_come_from_a_file_of_weights(recipe: Path, tmp_path: Path) -> None:
    config, rng = load_recipe(recipe), np.random.default_rng(0)
    shapes = stability_shapes(config.model)
    drawn = {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}
    write_weights(tmp_path / "w.safetensors", drawn, "stability", record_of(config, None, 16))
    run("sample_images.py", tmp_path / "w.safetensors", tmp_path / "page.png", "a red circle", "a blue square")
    page = pixels(tmp_path / "page.png")  # two images of 8 x 8 side by side
    assert page.shape == (8, 16, 3)
    assert (page[:, :8] != page[:, 8:]).any()


def test_a_source_of_ones_own_feeds_the_loader(tmp_path: Path) -> None:
    rows = ["dir,text"]
    for number, size in enumerate([(90, 70), (70, 90), (80, 80), (99, 64)]):
        Image.new("RGB", size, (number, 0, 0)).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,Picture {number}")
    (tmp_path / "img_txt.csv").write_text("\n".join(rows) + "\n")
    answer = run("image_source.py", tmp_path)
    assert answer == "2 (2, 3, 64, 64) ['picture 0', 'picture 3']\n"
