"""Training from a cache is training online: same latents, text, losses and weights, without the encoders."""

import json
import os
import queue
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data import Cache, DataError, Entries, Loader, make_order
from data.cache.cache import damaged_entries
from launcher.contract.accelerators import ACCELERATORS
from launcher.contract.config import ConfigError
from launcher.planning.mpirun import ROOT_VARIABLES, find_mpirun
from support import PROGRAMS
from support.thread_ranks import ThreadRank
from support.weights_files import write_tiny
from vpred_train.commands.train import main as train_main
from vpred_train.config.train import TrainConfig
from vpred_train.distributed.collectives import SingleProcess
from vpred_train.latent_cache import requirements as cached_data
from vpred_train.latent_cache.encode import encode
from vpred_train.latent_cache.requirements import cache_specs, check_cache, share_entries
from vpred_train.prepare.data import PROBED_IMAGES, open_data
from vpred_train.prepare.recipe import load_recipe
from vpred_train.weights.formats.stored_tensor import StoredTensor

RECIPE = """
seed: 4
total_samples: 40
global_batch: 4
final_samples: 0
data: {path: images, resolution: 16, horizontal_flip: true, caption_drop: 0.3}
pretrained: {path: published.safetensors}
optimizer: {learning_rate: 1e-2}
checkpoint: {every_samples: 12}
validation: {every_samples: 8, count: 2, batch_size: 3}
"""
STEPS = 4


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images, two of them equal, as are two captions; four have two captions. A recipe with random weights."""
    root = tmp_path_factory.mktemp("cached")
    write_tiny(root / "published.safetensors", "stability")
    (root / "images").mkdir()
    rng, rows = np.random.default_rng(0), []
    for number in range(8):
        pixels = np.zeros((16, 20, 3), np.uint8) if number < 2 else rng.integers(0, 256, (16, 20, 3), np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{number}.png")
        captions = [f"picture {max(number, 1)}", f"photo {number}"]
        rows.append(json.dumps({"file_name": f"{number}.png", "text": captions if number > 3 else captions[0]}))
    (root / "images" / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    (root / "recipe.yaml").write_text(RECIPE)
    return root


def recipe(root: Path, *overrides: str) -> TrainConfig:
    config = load_recipe(root / "recipe.yaml", overrides)
    return config.model_copy(update={"precision": config.precision.on(ACCELERATORS["cpu"])})


@pytest.fixture(scope="module")
def cached(root: Path) -> TrainConfig:
    """The recipe with a filled cache."""
    config = recipe(root, f"data.cache={root / 'cache'}")
    encode(config, 3, SingleProcess())
    return config


def trained(config: TrainConfig) -> tuple[list[float], np.ndarray, np.ndarray, Any]:
    """Losses, weights and held-out errors of a few steps, and the networks."""
    from vpred_train.distributed.flat_space import FlatSpace
    from vpred_train.engine.state import TrainState
    from vpred_train.engine.step import TrainStep
    from vpred_train.models.build import build_networks
    from vpred_train.training.inputs import make_inputs
    from vpred_train.training.validation import Validation

    data, alone = open_data(config), SingleProcess()
    networks = build_networks(config)
    fetcher, inputs = make_inputs(config, networks, data.training, data.held_out, alone, Path("recipe.yaml"))
    state = TrainState(config, FlatSpace(networks, config.trainable), alone)
    step = TrainStep(config, networks, state, alone, inputs)
    order = make_order(data.training, config.data, config.seed, config.global_batch)
    with Loader(data.training, fetcher, config.data, order, rank=0, world_size=1, start_samples_seen=0) as loader:
        losses = [step(next(loader)).loss for _ in range(STEPS)]
    assert data.held_out is not None
    errors = Validation(config, networks, state, data.held_out, alone, inputs).image_errors()
    return losses, state.weights.copy(), errors, networks


def test_losses_are_those_of_training_online(root: Path, cached: TrainConfig) -> None:
    losses, weights, errors, networks = trained(cached)
    expected_losses, expected_weights, expected_errors, complete = trained(recipe(root))
    assert networks.text_encoder is None
    assert networks.vae is None
    assert complete.vae is not None
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-6)
    np.testing.assert_allclose(weights, expected_weights, atol=1e-5)  # Adam divides small gradients by their own size
    np.testing.assert_allclose(errors, expected_errors, rtol=1e-5)
    assert len(set(losses)) == STEPS


def on_two_ranks(config: TrainConfig, file: Path) -> list[Entries]:
    told: queue.Queue[Any] = queue.Queue()

    def share(rank: int) -> Entries:
        data, specs = open_data(config), cache_specs(config)
        return share_entries(config, specs, data.training, data.held_out, Path("r"), ThreadRank(rank, told), file)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(share, range(2)))


@pytest.mark.parametrize("way", ["mapped", "not written", "not seen"])
def test_one_rank_finds_the_samples_and_the_others_map_what_it_found(
    cached: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    searches: list[int] = []
    search = cached_data.check_cache
    monkeypatch.setattr(cached_data, "check_cache", lambda *given: (searches.append(1), search(*given))[1])
    file = tmp_path / ("none" if way == "not written" else "") / "entries.safetensors"
    if way == "not seen":
        real = cached_data.mapped_entries
        monkeypatch.setattr(cached_data, "mapped_entries", lambda path, *rest: real(path / "elsewhere", *rest))
    first, other = on_two_ranks(cached, file)
    assert len(searches) == (1 if way == "mapped" else 2)
    assert bool(caplog.messages) == (way != "mapped")
    assert (first.path, other.path) == {
        "mapped": (file, file),
        "not written": (None, None),
        "not seen": (file, None),
    }[way]
    assert other.cache.shards == first.cache.shards
    for ours, theirs in zip((*other.moments, other.captions), (*first.moments, first.captions), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert other.squares is not None
    assert first.squares is not None
    np.testing.assert_array_equal(other.squares.rows, first.squares.rows)


def test_a_step_in_buckets_gets_what_it_gets_online(root: Path, cached: TrainConfig, tmp_path: Path) -> None:
    """Latents and text of batches of two sizes, half of the images being wide, and of what is looked at as squares:
    held-out images and probed ones. From there on both ways are one, whose losses are compared above."""
    from mindspore import Tensor

    from vpred_train.models.build import build_networks
    from vpred_train.training.inputs import make_inputs

    rng, rows = np.random.default_rng(1), ["dir,text"]
    for number in range(14):
        pixels = rng.integers(0, 256, (10, 40, 3) if number % 2 else (16, 20, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,picture {number}")
    (tmp_path / "img_txt.csv").write_text("\n".join(rows) + "\n")
    overrides = [f"data.path={tmp_path}", "data.buckets={multiple_px: 8, max_aspect: 4}"]
    online, config = recipe(root, *overrides), recipe(root, *overrides, f"data.cache={tmp_path / 'cache'}")
    data, recipe_path = open_data(config), Path("r.yaml")
    squares_alone = recipe(root, *overrides, f"data.cache={root / 'cache'}")
    with pytest.raises(DataError, match="moments made with height 16, but the recipe has 8"):
        check_cache(squares_alone, cache_specs(config), data.training, data.held_out, recipe_path)
    encode(config, 3, SingleProcess())

    order = make_order(data.training, config.data, config.seed, config.global_batch)
    samples = [data.training.sample(number) for number in range(PROBED_IMAGES)]
    samples += [data.held_out.sample(number) for number in range(2)] if data.held_out else []
    found = []
    for each in (config, online):
        networks = build_networks(each)
        fetcher, inputs = make_inputs(each, networks, data.training, data.held_out, SingleProcess(), recipe_path)
        with Loader(data.training, fetcher, each.data, order, rank=0, world_size=1, start_samples_seen=0) as loader:
            found.append([*(inputs.of_batch(next(loader)) for _ in range(STEPS)), inputs.of_samples(samples)])
        assert (networks.vae is None) == (each is config)
    for (latents, features), (expected, tokens) in zip(*found, strict=True):
        np.testing.assert_allclose(latents, expected, atol=1e-6)
        np.testing.assert_allclose(features, networks.text_encoder(Tensor(tokens)).asnumpy(), atol=1e-6)
    pixels = config.model.pixels_per_latent
    shapes = {latents.shape[2:] for latents, _ in found[0][:STEPS]}
    assert shapes == {(16 // pixels, 16 // pixels), (8 // pixels, 32 // pixels)}


def test_the_encoders_weights_are_not_loaded(cached: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    from vpred_train.models.build import build_networks

    read: list[int] = []
    original = StoredTensor.float32

    def counted(self: StoredTensor) -> Any:
        read.append(self.stored_bytes)
        return original(self)

    monkeypatch.setattr(StoredTensor, "float32", counted)
    networks = build_networks(cached)
    assert {name.split(".")[0] for name, _ in networks.parameters_and_names()} == {"unet"}
    assert sum(read) == sum(4 * each.size for each in networks.get_parameters())


def test_equal_inputs_are_encoded_once_and_nothing_twice(
    root: Path, cached: TrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = Cache(root / "cache")
    by_kind = {kind: sum(1 for s in cache.shards if s.spec["kind"] == kind) for kind in ("moments", "text")}
    data = open_data(cached)
    samples = [each.sample(i) for each in (data.training, data.held_out) if each for i in range(len(each))]
    mirrored = {data.training.sample(i).content_hash for i in range(len(data.training))}
    expected = (
        len({s.content_hash for s in samples}) + len(mirrored) + len({"", *(t for s in samples for t in s.captions)})
    )
    assert len(cache) == expected
    assert by_kind == {"moments": 1, "text": 1}
    encode(cached, 3, SingleProcess())
    assert f"0 entries written, {expected} were there" in capsys.readouterr().out
    assert len(Cache(root / "cache")) == expected


def mpirun(*program: str) -> subprocess.CompletedProcess[str]:
    """Two ranks of `vpred-data encode`."""
    found = find_mpirun(None, os.environ)
    argv = [str(found.path), "-np", "2", *found.dialect.oversubscribe, "--bind-to", "none", sys.executable, *program]
    env = os.environ | (ROOT_VARIABLES if os.geteuid() == 0 else {})
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, env=env)


def test_an_encode_of_which_a_rank_was_killed_goes_on(root: Path, cached: TrainConfig, tmp_path: Path) -> None:
    """What was written before is kept, and the whole is sound and complete."""
    arguments = ["encode", "--recipe", str(root / "recipe.yaml"), "--output", str(tmp_path / "cache")]
    killed = mpirun(str(PROGRAMS / "encode_killed.py"), *arguments)
    assert killed.returncode != 0
    kept = len(Cache(tmp_path / "cache"))
    wanted = len(Cache(root / "cache"))
    assert 4 <= kept < wanted
    resumed = mpirun("-m", "vpred_train.commands.data", *arguments)
    assert resumed.returncode == 0, resumed.stderr
    assert f"{wanted - kept} entries written, {kept} were there" in resumed.stdout
    cache = Cache(tmp_path / "cache")
    assert len(cache) == wanted
    assert not damaged_entries(cache)
    config = recipe(root, f"data.cache={tmp_path / 'cache'}")
    data = open_data(config)
    check_cache(config, cache_specs(config), data.training, data.held_out, Path("r.yaml"))


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ("data.resolution=32", "moments made with height 16, but the recipe has 32"),
        ("data.background=red", "moments made with background white, but the recipe has red"),
        ("model.text_encoder.padding=end", "text made with text_encoder"),
    ],
)
def test_a_stale_cache_is_refused(root: Path, cached: TrainConfig, change: str, cause: str) -> None:
    config = recipe(root, f"data.cache={root / 'cache'}", change)
    data = open_data(config)
    with pytest.raises(DataError, match=rf"vpred-data encode --recipe r.yaml --output {root / 'cache'}") as stale:
        check_cache(config, cache_specs(config), data.training, data.held_out, Path("r.yaml"))
    assert cause in str(stale.value)


def test_other_weights_are_a_miss(root: Path, cached: TrainConfig) -> None:
    specs, data = cache_specs(cached), open_data(cached)
    vae = {**specs.moments["vae"], "xxh3": "0"}
    other = replace(specs, moments={**specs.moments, "vae": vae})
    with pytest.raises(DataError, match=r"moments made with vae .*'xxh3': '0'"):
        check_cache(cached, other, data.training, data.held_out, Path("r.yaml"))


def test_another_transform_is_a_miss(root: Path, cached: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vpred_train.latent_cache.requirements.TRANSFORM", "lanczos-2")
    data, specs = open_data(cached), cache_specs(cached)
    with pytest.raises(DataError, match="moments made with transform lanczos-3, but the recipe has lanczos-2"):
        check_cache(cached, specs, data.training, data.held_out, Path("r.yaml"))


def test_a_check_finds_a_cache_that_lacks_something(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        train_main(["--check", "--recipe", str(root / "recipe.yaml"), f"data.cache={root / 'nothing'}"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"{root / 'nothing'}: holds no cache; make them with vpred-data encode")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ("trainable=[unet, text_encoder]", "data.cache holds text features, but the text_encoder learns"),
        ("data.crop=random", "cache holds centre crops"),
    ],
)
def test_what_cannot_be_cached_is_refused(root: Path, change: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        recipe(root, "data.cache=cache", change)


def test_a_full_disk_is_told_before_work(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("vpred_train.latent_cache.encode.shutil.disk_usage", lambda _: usage(1, 1, 1000))
    config = recipe(root, f"data.cache={tmp_path / 'cache'}")
    with pytest.raises(ConfigError, match=r"needs .* GB, but 1e-06 GB are free"):
        encode(config, 3, SingleProcess())
    assert list((tmp_path / "cache").iterdir()) == []
