"""A run that was complete gets longer, with its data moved and its recipe changed where it may be."""

import hashlib
from pathlib import Path

from launcher.contract.run_dir import RunDir
from support.jobs import SMALL_RECIPE, end, lend_graphs, losses, start, write_images

SETTINGS = ["schedule={name: constant}", "final_samples=0", "checkpoint.every_samples=16"]
IMAGES = "data.path=images"  # beside the recipe


def contents(run: RunDir) -> dict[str, str]:
    files = [path for path in run.root.rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path != run.lock}


def test_a_complete_run_gets_longer_with_the_bits_of_a_long_one(tmp_path: Path) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(SMALL_RECIPE)
    write_images(tmp_path / "images", 8)
    whole, run = RunDir(tmp_path / "whole"), RunDir(tmp_path / "short")
    code, output = end(start(recipe, whole.root, 2, overrides=[*SETTINGS, "total_samples=64", IMAGES]))
    assert code == 0, output
    lend_graphs(whole.root, run.root)
    code, output = end(start(recipe, run.root, 2, overrides=[*SETTINGS, "total_samples=32", IMAGES]))
    assert code == 0, output

    before = contents(run)
    code, output = end(start(recipe, run.root, 2, overrides=[*SETTINGS, "total_samples=64", "seed=9", IMAGES]))
    assert code == 2
    assert "belongs to a different recipe: seed (0 there, 9 here): it never changes within a run" in output
    assert contents(run) == before

    (tmp_path / "images").rename(tmp_path / "moved")
    run = RunDir(run.root.rename(tmp_path / "renamed"))
    longer = ["total_samples=64", "checkpoint.keep_last=1", "data.workers=1", "data.path=moved"]
    code, output = end(start(recipe, run.root, 2, overrides=[*SETTINGS, *longer]))
    assert code == 0, output
    assert losses(run.root) == losses(whole.root) and len(losses(run.root)) == 16
    for path in whole.weights.iterdir():
        assert (run.weights / path.name).read_bytes() == path.read_bytes()
    assert [path.name for path in run.checkpoints.glob("step_*")] == ["step_0000000016"]
    report = run.report_html.read_text()
    assert "recipe changed at 32 samples" in report
    assert "total_samples: 32 before, 64 after" in report and "checkpoint.keep_last: 2 before, 1 after" in report
    assert "data.workers" not in report.split("<details>")[0]
    code, output = end(start(recipe, run.root, 2, overrides=[*SETTINGS, *longer]))
    assert code == 0 and "is already complete" in output
