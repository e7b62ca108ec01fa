"""What MindSpore's msrun does with a rank that ends badly (training under it: test_backends.py)."""

from pathlib import Path

from support.jobs import SMALL_RECIPE
from support.msrun import msrun


def test_a_mistake_in_the_recipe_ends_all_of_msrun(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(SMALL_RECIPE.replace("global_batch: 4", "global_batch: 1"))
    train = ["-P", "-m", "vpred_train", "--recipe", str(tmp_path / "recipe.yaml"), "--run-dir", str(tmp_path / "run")]
    code, logs = msrun(2, train, tmp_path)
    assert code != 0
    assert "found 1 for 2 ranks" in logs[0] + logs[1]
