"""The held-out loss against float64, on one rank and two, and that looking changes nothing."""

import contextlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data import (
    Batch,
    ImageFetcher,
    Loader,
    Source,
    hold_out,
    load_centred,
    make_order,
    open_source,
    sample_generator,
)
from vpred_train.config.train import TrainConfig
from vpred_train.diffusion.schedule import make_schedule
from vpred_train.distributed.collectives import SingleProcess
from vpred_train.engine.state import average_in_use
from vpred_train.training import previews as previews_module
from vpred_train.training.hooks.hook import ValidationLoss
from vpred_train.training.previews import Previews
from vpred_train.training.validation import Validation

SETTINGS = {"every_samples": 8, "count": 7, "bins": 3, "draws": 2, "batch_size": 2, "seed": 5}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Source, Source]:
    """Five images to train on and seven held out."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(12):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"{number}.png")
    rows = "\n".join(f"{number}.png,caption {number}" for number in range(12))
    (folder / "img_txt.csv").write_text(f"dir,text\n{rows}\n")
    return hold_out(open_source(folder), 5, count=7)


@pytest.fixture(scope="module")
def config(train_config: TrainConfig) -> TrainConfig:
    tree = train_config.model_dump(mode="json") | {"validation": SETTINGS}
    tree |= {"previews": {"every_samples": 8, "count": 3}, "sampling": {"steps": 2, "batch_size": 2}}
    return TrainConfig.model_validate(tree)


@pytest.fixture(scope="module")
def step(config: TrainConfig) -> Any:
    """A step whose averages differ from its weights, and both from the fresh ones."""
    from vpred_train.distributed.flat_space import FlatSpace
    from vpred_train.engine.state import TrainState
    from vpred_train.engine.step import TrainStep
    from vpred_train.models.networks import Networks

    networks = Networks(config.model, config.seed)
    state = TrainState(config, FlatSpace(networks, config.trainable), SingleProcess())
    rng = np.random.default_rng(1)
    for values in (state.weights, *state.averages.values()):
        values += rng.normal(0, 0.05, state.space.size).astype(np.float32)
    state.space.write(state.weights)
    return TrainStep(config, networks, state, SingleProcess())


@pytest.fixture(scope="module")
def validation(config: TrainConfig, step: Any, parts: tuple[Source, Source]) -> Validation:
    return Validation(config, step.networks, step.state, parts[1], SingleProcess())


def expected_errors(config: TrainConfig, step: Any, held_out: Source, kind: str) -> np.ndarray:
    """(images, bins) in float64 but for the network; `kind` is what the network's output is taken for."""
    from mindspore import Tensor

    schedule = make_schedule(config.diffusion)
    samples = [held_out.sample(number) for number in range(len(held_out))]
    images = load_centred(samples, config.data)
    latents, tokens = (
        step.inputs.latents.encode(images),
        step.inputs.tokenizer([sample.text for sample in samples]),
    )
    errors = np.zeros((7, 3))
    for image in range(7):
        for b, (first, stop) in enumerate(((0, 333), (333, 666), (666, 1000))):
            generator = sample_generator(5, "validation", b, image)
            for _ in range(2):
                t = generator.integers(first, stop)
                noise = generator.standard_normal(latents.shape[1:], np.float32).astype(np.float64)
                alpha, sigma = float(schedule.alpha[t]), float(schedule.sigma[t])
                z_t = alpha * latents[image] + sigma * noise
                inputs = (z_t[None].astype(np.float32), np.array([t], np.float32), tokens[image : image + 1])
                output = step.networks(*(Tensor(each) for each in inputs)).asnumpy()[0].astype(np.float64)
                if kind == "x0":  # v of an image: (alpha z - x) / sigma
                    output = (alpha * z_t - output) / sigma
                elif kind == "eps":  # v of a noise: (noise - sigma z) / alpha
                    output = (output - sigma * z_t) / alpha
                errors[image, b] += np.mean((output - alpha * noise + sigma * latents[image]) ** 2) / 2
    return errors


@pytest.mark.parametrize("kind", ["v", "eps", "x0"])
def test_errors_are_those_of_v_in_float64(
    config: TrainConfig, step: Any, parts: tuple[Source, Source], kind: str
) -> None:
    diffusion = config.diffusion.model_copy(update={"prediction_type": kind})
    config = config.model_copy(update={"diffusion": diffusion})
    found = Validation(config, step.networks, step.state, parts[1], SingleProcess()).image_errors()
    np.testing.assert_allclose(found, expected_errors(config, step, parts[1], kind), rtol=2e-5)


def test_means_standard_errors_and_ranges(config: TrainConfig, step: Any, validation: Validation) -> None:
    losses = validation.losses()
    errors = validation.image_errors()
    with average_in_use(step.state, "constant"):
        averaged = validation.image_errors()
    snr = make_schedule(config.diffusion).snr
    assert [each.weights for each in losses] == ["raw"] * 4 + ["constant"] * 4
    ranges = [(0, 999), (0, 332), (333, 665), (666, 999)]
    for index, loss in enumerate(losses):
        of_images = (errors if index < 4 else averaged)[:, [0, 1, 2] if index % 4 == 0 else [index % 4 - 1]].mean(1)
        mean = math.fsum(of_images) / 7
        assert loss.loss == pytest.approx(mean, rel=1e-12)
        variance = math.fsum((error - mean) ** 2 for error in of_images) / 6
        assert loss.standard_error == pytest.approx(math.sqrt(variance / 7), rel=1e-12)
        first, last = ranges[index % 4]
        assert (loss.first_timestep, loss.last_timestep, loss.images) == (first, last, 7)
        assert (loss.log_snr_high, loss.log_snr_low) == pytest.approx((math.log(snr[first]), math.log(snr[last])))
    assert losses[0].loss != losses[4].loss
    assert validation.losses() == losses  # the same noise every time


class WaitingError(Exception):
    """A rank waits for the others."""


class Rank:
    """One of several ranks, run one after the other: it stops where it gathers, until the last has come there."""

    def __init__(self, rank: int, answers: list[Any]) -> None:
        self.rank, self.world_size, self.answers = rank, len(answers), answers

    def allgather_object(self, value: Any) -> list[Any]:
        self.answers[self.rank] = value
        if self.rank + 1 < self.world_size:
            raise WaitingError
        return self.answers


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_any_number_of_ranks_has_the_same_errors(
    config: TrainConfig, step: Any, parts: tuple[Source, Source], validation: Validation, ranks: int
) -> None:
    answers: list[Any] = [None] * ranks
    for rank in range(ranks):
        collective: Any = Rank(rank, answers)
        share = Validation(config, step.networks, step.state, parts[1], collective)
        share.squared_error = validation.squared_error  # compiled once
        with contextlib.suppress(WaitingError):
            whole = share.image_errors()
    assert [len(each) for each in answers] == [(4 - rank + ranks - 1) // ranks for rank in range(ranks)]
    np.testing.assert_array_equal(whole, validation.image_errors())


class Seen:
    """A hook that keeps what it is told."""

    def __init__(self) -> None:
        self.losses: list[ValidationLoss] = []

    def on_validation(self, step: int, samples_seen: int, losses: list[ValidationLoss]) -> None:
        self.losses += losses


def test_looking_changes_no_bit_of_the_training(
    config: TrainConfig, step: Any, parts: tuple[Source, Source], validation: Validation, tmp_path: Path
) -> None:
    from checkpoints_mgr import State

    training, held_out = parts
    state = step.state
    previews = Previews(config, step.networks, state, held_out, SingleProcess(), tmp_path / "samples")
    saved = state.to_checkpoint()
    start = State(whole={name: value.copy() for name, value in saved.whole.items()}, progress=dict(saved.progress))
    seen = Seen()
    hooks: Any = [seen]

    def train(looking: bool) -> tuple[list[Any], np.ndarray]:
        state.from_checkpoint(start)
        state.space.write(state.weights)
        results = []
        for batch in batches(config, training, 3):
            if looking:
                for observer in (validation, previews):
                    observer.observe(hooks, state.samples_seen // 4, state.samples_seen)
                    np.testing.assert_array_equal(state.space.read(), state.weights)
            result = step(batch)
            results.append((result.loss, result.grad_norm))
        return results, np.concatenate([state.weights, *state.averages.values(), *state.optimizer.moments.values()])

    plain, looked = train(False), train(True)
    assert plain[0] == looked[0]
    np.testing.assert_array_equal(plain[1], looked[1])
    assert len(seen.losses) == 3 * 8
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["step-0.png", "step-1.png", "step-2.png"]
    with Image.open(tmp_path / "samples" / "step-0.png") as image:
        assert image.size == (16, 16)  # three images of 8 x 8, two in a row
    state.from_checkpoint(start)
    state.space.write(state.weights)


def batches(config: TrainConfig, training: Source, count: int) -> list[Batch]:
    data = config.data
    order, fetcher = make_order(training, data, 0, 4), ImageFetcher(training, data, 0)
    with Loader(training, fetcher, data, order, rank=0, world_size=1, start_samples_seen=0) as loader:
        return [next(loader) for _ in range(count)]


def test_an_average_leaves_with_an_error_too(step: Any) -> None:
    with pytest.raises(RuntimeError, match="inside"), average_in_use(step.state, "constant"):
        np.testing.assert_array_equal(step.state.space.read(), step.state.averages["constant"])
        raise RuntimeError("inside")
    np.testing.assert_array_equal(step.state.space.read(), step.state.weights)


def test_previews_are_those_of_the_sampler(
    config: TrainConfig, step: Any, parts: tuple[Source, Source], tmp_path: Path
) -> None:
    from vpred_train.sampling.images import to_uint8
    from vpred_train.sampling.pipeline import TextToImage

    tree = config.model_dump(mode="json") | {"previews": {"every_samples": 4, "prompts": ["a", "b"], "seed": 9}}
    config = TrainConfig.model_validate(tree)
    Previews(config, step.networks, step.state, parts[1], SingleProcess(), tmp_path).observe([], 4, 16)
    step.state.space.write(step.state.averages["constant"])
    pipeline = TextToImage(step.networks, config.model, config.diffusion, config.sampling, 8, 8)
    expected = np.concatenate(to_uint8(pipeline.generate(["a", "b"], [9, 10])), axis=1)
    step.state.space.write(step.state.weights)
    with Image.open(tmp_path / "step-4.png") as image:
        np.testing.assert_array_equal(np.asarray(image), expected)


def test_a_preview_that_is_not_finite_is_logged_and_the_run_goes_on(
    config: TrainConfig, step: Any, parts: tuple[Source, Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    folder = tmp_path / "grids"
    observer = Previews(config, step.networks, step.state, parts[1], SingleProcess(), folder)
    images = np.full((3, 3, 8, 8), np.nan, np.float32)
    monkeypatch.setattr(previews_module, "generate_shared", lambda *_: images)
    observer.observe([], 5, 20)
    assert "step 5: no preview: image 0 of 3 is not finite" in caplog.text
    assert not folder.exists()
    images[:] = 0
    observer.observe([], 6, 24)
    assert [path.name for path in folder.iterdir()] == ["step-6.png"]
