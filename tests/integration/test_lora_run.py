"""LoRA of a narrow Stable Diffusion 2, trained on two ranks: from published weights to files and images."""

from pathlib import Path

import numpy as np
import pytest

from launcher.contract.run_dir import RunDir, Summary
from support.finetuning import RECIPE, prepare
from support.jobs import end, losses, pixels, sample, start
from support.weights_files import TINY, TINY_RECORD
from vpred_train.commands.ema import main as vpred_ema
from vpred_train.commands.weights import main as vpred_weights
from vpred_train.weights.layouts.read_write import read_weights
from vpred_train.weights.layouts.weight_source import weights_digest
from vpred_train.weights.lora.factors import attention_targets
from vpred_train.weights.lora.files import open_lora, read_factors

LORA = """
trainable: [unet, text_encoder]
lora: {rank: 2, alpha: 4}
ema: {profiles: [constant, power], snapshot_every_samples: 4, snapshot_dtype: float32}
"""


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A finished run of two ranks."""
    root = tmp_path_factory.mktemp("lora")
    prepare(root)
    (root / "lora.yaml").write_text(RECIPE + LORA)
    code, output = end(start(root / "lora.yaml", root / "run", 2))
    assert code == 0, output
    return RunDir(root / "run")


def test_a_run_leaves_factors(lora_run: RunDir) -> None:
    summary = Summary.read(lora_run.summary_json)
    assert summary is not None
    assert (summary.weights, len(losses(lora_run.root))) == (Path("weights/ema.safetensors"), 3)
    raw, ema = (open_lora(lora_run.weights / f"{name}.safetensors") for name in ("raw", "ema"))
    assert raw.record is not None and ema.record is not None
    assert (raw.record.weights, ema.record.weights, ema.record.samples_seen) == ("raw", "ema", 12)
    assert ema.record.model == TINY_RECORD.model
    assert ema.record.base_xxh3 == weights_digest(lora_run.root.with_name("published"))
    factors = read_factors(raw)
    assert set(factors) == set(attention_targets(TINY))
    assert {(each.rank, each.scale) for each in factors.values()} == {(2, 2.0)}
    assert all(each.up.any() for each in factors.values())
    averaged = read_factors(ema)
    assert any(not np.array_equal(each.up, averaged[target].up) for target, each in factors.items())


def test_averages_of_factors_are_made_afterwards(lora_run: RunDir, tmp_path: Path) -> None:
    """A tracked width is the run's own export; another lies nearer to it than to the raw factors."""
    made = {}
    for sigma_rel in ("0.1", "0.09"):
        path = tmp_path / sigma_rel
        with pytest.raises(SystemExit) as done:
            vpred_ema([str(lora_run.root), "--sigma-rel", sigma_rel, "--output", str(path)])
        assert done.value.code == 0
        made[sigma_rel] = open_lora(path)
    exported = open_lora(lora_run.weights / "ema_power_0.1.safetensors")
    assert made["0.1"].record == exported.record
    assert made["0.09"].record is not None
    assert (made["0.09"].record.average, made["0.09"].record.base_xxh3) == ("power_0.09", exported.record.base_xxh3)
    same, near = (read_factors(made[sigma_rel]) for sigma_rel in ("0.1", "0.09"))
    raw = read_factors(open_lora(lora_run.weights / "raw.safetensors"))
    for target, each in read_factors(exported).items():
        assert (same[target].alpha, near[target].alpha) == (each.alpha, each.alpha)
        np.testing.assert_allclose(same[target].up, each.up, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(same[target].down, each.down, rtol=1e-6, atol=1e-9)
        assert np.linalg.norm(near[target].up - each.up) < np.linalg.norm(raw[target].up - each.up)


def test_one_rank_and_two_ranks_learn_alike(lora_run: RunDir, tmp_path: Path) -> None:
    code, output = end(start(lora_run.root.with_name("lora.yaml"), tmp_path / "one", 1, overrides=["final_samples=0"]))
    assert code == 0, output
    np.testing.assert_allclose(losses(tmp_path / "one"), losses(lora_run.root), rtol=1e-5)


def test_the_run_its_file_and_the_merged_weights_make_one_image(lora_run: RunDir, tmp_path: Path) -> None:
    published = lora_run.root.with_name("published")
    file, merged = lora_run.weights / "ema.safetensors", tmp_path / "merged"
    with pytest.raises(SystemExit) as done:
        vpred_weights(["merge", str(published), str(file), str(merged), "--to", "diffusers"])
    assert done.value.code == 0
    base, changed = read_weights(published), read_weights(merged)
    names = {name for name in base if not np.array_equal(base[name], changed[name])}
    assert names == {target.weight for target in attention_targets(TINY)}
    options = ["--prompt", "picture 1", "--steps", "2", "--seed", "3", "--guidance-scale", "3"]
    ways = {
        "run": ["--run", str(lora_run.root), *options],
        "lora": ["--ckpt", str(published), "--lora", str(file), *options],
        "merged": ["--ckpt", str(merged), *options],
        "none": ["--ckpt", str(published), "--lora", str(file), "--lora-scale", "0", *options],
    }
    images = {way: pixels(*sample(*words, "--output", str(tmp_path / way))) for way, words in ways.items()}
    assert (images["run"] == images["lora"]).all()
    assert (images["run"] == images["merged"]).all()
    assert (images["run"] != images["none"]).any()
    (again,) = sample("--like", str(tmp_path / "run" / "00000.png"), "--output", str(tmp_path / "again"))
    assert again.read_bytes() == (tmp_path / "run" / "00000.png").read_bytes()


def test_a_rank_that_is_too_large_is_refused(lora_run: RunDir, tmp_path: Path) -> None:
    recipe = lora_run.root.with_name("large.yaml")
    recipe.write_text(RECIPE + LORA.replace("rank: 2", "rank: 9"))
    code, output = end(start(recipe, tmp_path / "large", 2))
    assert code == 2
    assert "lora.rank: found 9, but an adapted matrix has only 8; give at most that" in output
