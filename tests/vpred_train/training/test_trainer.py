"""What ends a run and what does not: the loop with steps of which only the outcome counts."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from checkpoints_mgr import CheckpointManager
from data import Batch, join, open_source
from launcher.contract.config import ConfigError, dump_yaml
from support.jobs import write_images
from vpred_train.config.train import TrainConfig
from vpred_train.config.validation import ValidationConfig
from vpred_train.distributed.collectives import SingleProcess

GOOD = {"loss": 0.5, "grad_norm": 1.0, "finite": True, "overflow": False}
BAD = GOOD | {"loss": math.nan, "grad_norm": math.nan, "finite": False}
OVERFLOW = GOOD | {"grad_norm": math.inf, "finite": False, "overflow": True}


class Steps:
    """A hook that keeps what it is told of steps."""

    def __init__(self) -> None:
        self.results: list[Any] = []
        self.phases: list[str] = []

    def on_phase(self, phase: str, *_: Any) -> None:
        self.phases.append(phase)

    def on_step(self, result: Any) -> None:
        self.results.append(result)

    def on_checkpoint(self, *_: Any) -> None:
        pass

    def on_checkpoint_failed(self, *_: Any) -> None:
        pass

    def on_validation(self, *_: Any) -> None:
        pass


def trainer_of(config: TrainConfig, folder: Path, outcomes: list[dict[str, Any]]) -> Any:
    """A trainer whose steps end so, one after the other, and then well."""
    from vpred_train.engine.step_result import StepResult
    from vpred_train.models.networks import Networks
    from vpred_train.training.trainer import Trainer

    write_images(folder / "images", 8)
    data = config.data.model_copy(update={"path": folder / "images"})
    config = config.model_copy(update={"data": data})
    checkpoints = CheckpointManager(folder / "checkpoints")
    source = open_source(data.path)
    trainer: Any = Trainer(
        config, Networks(config.model, 0), source, SingleProcess(), checkpoints, folder / "snapshots"
    )
    coming = iter(outcomes)

    def step(batch: Batch) -> StepResult:
        trainer.state.samples_seen = batch.samples_seen
        number = batch.samples_seen // config.global_batch
        seconds = {"step_seconds": 1.0, "data_wait_seconds": 0.0, "collective_seconds": 0.0}
        clock = {"step": number, "samples_seen": batch.samples_seen, **seconds}
        return StepResult(**clock, learning_rate=0.0, loss_scale=1.0, nonfinite_samples={}, **next(coming, GOOD))

    trainer.step = step
    return trainer


class Never:
    received = False


def test_three_steps_in_a_row_that_are_not_finite_end_the_run(train_config: TrainConfig, tmp_path: Path) -> None:
    from vpred_train.training.trainer import DivergedError

    trainer = trainer_of(train_config, tmp_path, [BAD, BAD, GOOD, BAD, OVERFLOW, BAD, OVERFLOW, BAD, GOOD])
    steps = Steps()
    with pytest.raises(DivergedError, match="in 3 steps in a row, the last is 8"):
        trainer.run([steps], Never())
    assert len(steps.results) == 8  # an overflow in between neither counts nor forgives


def test_overflows_alone_never_do(train_config: TrainConfig, tmp_path: Path) -> None:
    trainer = trainer_of(train_config, tmp_path, [OVERFLOW] * 10)
    steps = Steps()
    assert trainer.run([steps], Never())
    assert [result.overflow for result in steps.results] == [True] * 10 + [False] * 10


def test_a_run_that_drew_its_samples_in_another_order_is_refused(train_config: TrainConfig, tmp_path: Path) -> None:
    trainer = trainer_of(train_config, tmp_path, [])
    saved = trainer.state.to_checkpoint()
    del saved.progress["order_version"]  # as before there was one
    trainer.checkpoints.save(3, saved)
    with pytest.raises(ConfigError, match="the checkpoint's samples come in order 1, this version's in order 2"):
        trainer.resume()


def test_a_run_that_resized_its_images_in_another_way_is_refused(train_config: TrainConfig, tmp_path: Path) -> None:
    trainer = trainer_of(train_config, tmp_path, [])
    saved = trainer.state.to_checkpoint()
    saved.progress["transform"] = "bicubic-1"
    trainer.checkpoints.save(3, saved)
    with pytest.raises(ConfigError, match="images were resized by bicubic-1, this version's are by lanczos-3"):
        trainer.resume()
    del saved.progress["transform"]  # as before it was told
    trainer.checkpoints.save(4, saved)
    with pytest.raises(ConfigError, match="images were resized by lanczos-2"):
        trainer.resume()


def test_a_resume_notices_that_the_data_changed(train_config: TrainConfig, tmp_path: Path) -> None:
    trainer = trainer_of(train_config, tmp_path, [])
    saved = trainer.state.to_checkpoint()
    trainer.checkpoints.save(3, saved)
    trainer.source = open_source((tmp_path / "images").rename(tmp_path / "moved"))
    trainer.resume()
    table = tmp_path / "moved" / "img_txt.csv"
    table.write_text(table.read_text().replace("picture 3", "picture three"))
    trainer.source = open_source(tmp_path / "moved")
    with pytest.raises(ConfigError, match=r"moved: images, captions or their order have changed since the checkpoint"):
        trainer.resume()
    del saved.progress["data_digest"]  # as before there was one
    trainer.checkpoints.save(4, saved)
    trainer.resume()


def test_a_resume_notices_that_other_images_are_held_out(train_config: TrainConfig, tmp_path: Path) -> None:
    validation = ValidationConfig(every_samples=40, count=2)
    trainer = trainer_of(train_config.model_copy(update={"validation": validation}), tmp_path, [])
    trainer.state.held_out_digest = "a"
    saved = trainer.state.to_checkpoint()
    trainer.checkpoints.save(3, saved)
    trainer.resume()
    trainer.state.held_out_digest = "b"
    with pytest.raises(ConfigError, match="the held-out images have changed since the checkpoint; put them back"):
        trainer.resume()
    del saved.progress["held_out_digest"]  # as before there was one
    trainer.checkpoints.save(4, saved)
    with pytest.raises(ConfigError, match="the version that began the run chose other images to hold out"):
        trainer.resume()
    apart = validation.model_copy(update={"count": None, "path": tmp_path})
    trainer.config = trainer.config.model_copy(update={"validation": apart})
    trainer.resume()


def test_a_resume_keeps_what_changed_and_refuses_what_may_not(
    train_config: TrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = trainer_of(train_config, tmp_path, [])
    trainer.state.samples_seen = 12
    saved = trainer.state.to_checkpoint()
    saved.record["train"] = dump_yaml(trainer.config)
    trainer.checkpoints.save(3, saved)
    begun = trainer.config
    sampling = begun.sampling.model_copy(update={"steps": 3})
    data = begun.data.model_copy(update={"workers": 2})
    precision = begun.precision.model_copy(update={"compute_dtype": "bfloat16"})  # on another accelerator
    trainer.config = begun.model_copy(update={"sampling": sampling, "data": data, "precision": precision})
    with caplog.at_level("INFO"):
        trainer.resume()
    assert "the recipe changed: sampling.steps was 15, now 3" in caplog.text
    assert "workers" not in caplog.text  # of the machine
    (change,) = trainer.state.recipe_changes
    assert change.pop("unix_s") > 1.7e9
    assert change == {"samples_seen": 12, "key": "sampling.steps", "before": 15, "after": 3}

    again = trainer.state.to_checkpoint()  # with what changed before
    again.record["train"] = dump_yaml(trainer.config)
    trainer.checkpoints.save(4, again)
    trainer.config = trainer.config.model_copy(update={"final_samples": 0})
    trainer.resume()
    assert [each["key"] for each in trainer.state.recipe_changes] == ["sampling.steps", "final_samples"]
    trainer.config = begun.model_copy(update={"seed": 1})
    with pytest.raises(
        ConfigError, match=r"checkpoint of step 4: belongs to a different recipe: seed \(0 there, 1 here"
    ):
        trainer.resume()


def test_buckets_train_at_several_shapes(
    train_config: TrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from vpred_train.models.networks import Networks
    from vpred_train.training.trainer import Trainer

    lines = ["dir,text"]
    for number in range(16):
        size = ((40, 40), (80, 20))[number % 2]
        Image.new("RGB", size, (10 * number, 90, 200)).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,picture {number}")
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    raw = train_config.model_dump() | {"total_samples": 16}
    raw["data"] |= {"path": tmp_path, "buckets": {"multiple_px": 4, "max_aspect": 4.0}}
    config = TrainConfig.model_validate(raw)
    networks = Networks(config.model, 0)
    trainer = Trainer(
        config, networks, open_source(tmp_path), SingleProcess(), CheckpointManager(tmp_path / "c"), tmp_path / "s"
    )
    shapes, whole = [], trainer.step

    def step(batch: Batch) -> Any:
        shapes.append(batch.images.shape[2:])
        return whole(batch)

    trainer.step = step  # type: ignore[assignment]
    steps = Steps()
    before = trainer.state.weights.copy()
    with caplog.at_level("INFO"):
        assert trainer.run([steps], Never())  # type: ignore[list-item,arg-type]
    assert "2 graph shapes, each compiled at its first batch: 8 x 8: 8, 16 x 4: 8" in caplog.text
    assert sorted(shapes) == [(4, 16), (4, 16), (8, 8), (8, 8)]
    assert steps.phases.count("compiling") == 2
    assert all(result.finite and math.isfinite(result.loss) for result in steps.results)
    assert np.abs(trainer.state.weights - before).max() > 1e-4


def test_two_folders_train_in_proportion_and_a_resume_goes_on_the_same(
    train_config: TrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from vpred_train.models.networks import Networks
    from vpred_train.training.trainer import Trainer

    folders = tmp_path / "many", tmp_path / "few"
    write_images(folders[0], 8)
    write_images(folders[1], 2)
    raw = train_config.model_dump() | {"total_samples": 24, "checkpoint": {"every_samples": 12}}
    sources = ({"path": folders[0], "weight": 0.5}, {"path": folders[1], "weight": 4})
    raw["data"] |= {"path": None, "sources": sources}
    config = TrainConfig.model_validate(raw)
    seen: list[int] = []

    def train(checkpoints: str, steps: int) -> Trainer:
        """So many steps, from where the checkpoints are."""
        made = Trainer(
            config,
            Networks(config.model, 0),
            join([open_source(folder) for folder in folders]),
            SingleProcess(),
            CheckpointManager(tmp_path / checkpoints),
            tmp_path / "snapshots",
        )
        one_step, last, stop = made.step, made.resume() + steps, Never()

        def step(batch: Batch) -> Any:
            seen.extend(batch.sample_ids.tolist())
            result = one_step(batch)
            stop.received = result.step == last
            return result

        made.step = step  # type: ignore[assignment]
        made.run([], stop)  # type: ignore[arg-type]
        return made

    with caplog.at_level("INFO"):
        whole = train("whole", 6)
    assert f"an epoch takes 4 of {folders[0]} (has 8), 8 of {folders[1]} (has 2)" in caplog.text
    assert [seen.count(sample_id) for sample_id in range(10)] == [1] * 8 + [8] * 2
    expected = seen.copy()
    seen.clear()
    assert train("parts", 2).steps_done == 2
    resumed = train("parts", 4)
    assert resumed.finished
    assert seen == expected
    np.testing.assert_array_equal(resumed.state.weights, whole.state.weights)


def test_buckets_must_fit_the_latents_and_the_resolution(train_config: TrainConfig) -> None:
    raw = train_config.model_dump()
    for multiple_px, message in ((1, "multiple_px 1 is not divisible by 2"), (3, "resolution 8 is not a multiple")):
        with pytest.raises(ValueError, match=message):
            TrainConfig.model_validate(raw | {"data": {**raw["data"], "buckets": {"multiple_px": multiple_px}}})
