"""Aspect buckets on two ranks: at each step both have the same size, and the losses are those of one rank."""

from pathlib import Path

import numpy as np
from PIL import Image

from launcher.contract.run_dir import RunDir
from support.jobs import SMALL_RECIPE, end, free_ports, losses, start

OVERRIDES = ["data.buckets={multiple_px: 4, max_aspect: 4.0}", "final_samples=0", "total_samples=24"]


def test_two_ranks_train_in_buckets_like_one(tmp_path: Path) -> None:
    rng, rows = np.random.default_rng(0), ["dir,text"]
    (tmp_path / "images").mkdir()
    for number in range(12):
        shape = ((20, 20, 3), (10, 40, 3))[number % 2]
        pixels = rng.integers(0, 256, shape).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
        rows.append(f"{number}.png,picture {number}")
    (tmp_path / "images" / "a.csv").write_text("\n".join(rows) + "\n")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(SMALL_RECIPE)
    runs = {ranks: RunDir(tmp_path / f"on_{ranks}") for ranks in (1, 2)}
    overrides = [f"data.path={tmp_path / 'images'}", *OVERRIDES]
    # Beside each other: they wait for imports and compilers more than they work.
    port = free_ports(3)
    processes = [start(recipe, run.root, ranks, port + ranks - 1, overrides) for ranks, run in runs.items()]
    for process, run in zip(processes, runs.values(), strict=True):
        code, output = end(process)
        assert code == 0, output
        assert "2 graph shapes" in run.attempt(1).log(0).read_text()
    found = [losses(run.root) for run in runs.values()]
    assert len(found[0]) == 6
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)
