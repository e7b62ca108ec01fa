"""What ends a run and what does not: the loop with steps of which only the outcome counts."""

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data import Batch, open_source
from launcher.contract.config import ConfigError, dump_yaml
from support.jobs import write_images
from support.step_results import RESULT
from vpred_train.config.train import TrainConfig
from vpred_train.config.validation import ValidationConfig
from vpred_train.prepare.data import open_data
from vpred_train.training.hooks.hook import Hook
from vpred_train.training.rank import single_rank

GOOD = {"loss": 0.5, "grad_norm": 1.0, "finite": True, "overflow": False}
BAD = GOOD | {"loss": math.nan, "grad_norm": math.nan, "finite": False}
OVERFLOW = GOOD | {"grad_norm": math.inf, "finite": False, "overflow": True}


class Steps(Hook):
    """A hook that keeps what it sees of steps and phases."""

    def __init__(self) -> None:
        self.results: list[Any] = []
        self.phases: list[str] = []

    def on_phase(self, phase: str, step: int, samples_seen: int) -> None:
        self.phases.append(phase)

    def on_step(self, result: Any) -> None:
        self.results.append(result)


def built(config: TrainConfig, folder: Path) -> Any:
    """The trainer of a run of one process in `folder`."""
    from vpred_train.training.run import build_trainer

    rank = single_rank(config, folder)
    return build_trainer(rank, open_data(rank.config))


def with_parts(trainer: Any, **parts: Any) -> Any:
    """A trainer of the same parts but for these."""
    from vpred_train.training.trainer import Trainer

    names = ("config", "networks", "state", "step", "batches", "checkpoints", "periodic", "collective")
    return Trainer(**{name: getattr(trainer, name) for name in names} | parts)


def trainer_of(config: TrainConfig, folder: Path, outcomes: list[dict[str, Any]]) -> Any:
    """A trainer whose steps end so, one after the other, and then well."""
    write_images(folder / "images", 8)
    data = config.data.model_copy(update={"path": folder / "images"})
    trainer = built(config.model_copy(update={"data": data}), folder)
    coming = iter(outcomes)

    def step(batch: Batch) -> Any:
        trainer.state.progress.samples_seen = batch.samples_seen
        number = batch.samples_seen // config.global_batch
        clock = {"step": number, "samples_seen": batch.samples_seen, "learning_rate": 0.0}
        return dataclasses.replace(RESULT, **clock, **next(coming, GOOD))

    return with_parts(trainer, step=step)


def on_source(trainer: Any, folder: Path) -> Any:
    """The same trainer on the images of another folder."""
    from vpred_train.training.batches import TrainingBatches

    source = open_source(folder)
    trainer.state.progress.data_digest = source.digest
    batches = TrainingBatches(trainer.config, source, trainer.batches.fetcher, trainer.collective)
    return with_parts(trainer, batches=batches)


class Never:
    received = False


class Account(Hook):
    """Keeps a clock, and the seconds that the run has reported, at each step's end."""

    def __init__(self) -> None:
        self.reported_s = {"step": 0.0}
        self.marks: list[tuple[float, float]] = []

    def on_step(self, result: Any) -> None:
        parts_s = {name: value for name, value in vars(result).items() if name.endswith("_seconds")}
        assert min(parts_s.values()) >= 0
        assert parts_s.pop("step_seconds") == pytest.approx(sum(parts_s.values()))
        self.reported_s["step"] += result.step_seconds
        self.marks.append((time.perf_counter(), sum(self.reported_s.values())))

    def on_pause(self, cause: str, seconds: float) -> None:
        self.reported_s[cause] = self.reported_s.get(cause, 0.0) + seconds


def test_steps_and_pauses_add_up_to_the_wall_clock(train_config: TrainConfig, tmp_path: Path) -> None:
    """Within 3 %, with validation and checkpoints between the steps."""
    write_images(tmp_path / "images", 10)
    data = train_config.data.model_copy(update={"path": tmp_path / "images"})
    validation = ValidationConfig(count=2, every_samples=16)
    account = Account()
    trainer = built(train_config.model_copy(update={"data": data, "validation": validation}), tmp_path)
    assert trainer.run(account, Never())
    (begun_s, reported_then_s), (ended_s, reported_s) = account.marks[0], account.marks[-1]
    assert account.reported_s.keys() == {"step", "validation", "checkpoint"}
    assert account.reported_s["validation"] > 0 < account.reported_s["checkpoint"]
    assert reported_s - reported_then_s == pytest.approx(ended_s - begun_s, rel=0.03)


def test_three_steps_in_a_row_that_are_not_finite_end_the_run(train_config: TrainConfig, tmp_path: Path) -> None:
    from vpred_train.training.trainer import DivergedError

    trainer = trainer_of(train_config, tmp_path, [BAD, BAD, GOOD, BAD, OVERFLOW, BAD, OVERFLOW, BAD, GOOD])
    steps = Steps()
    with pytest.raises(DivergedError, match="in 3 steps in a row, the last is 8"):
        trainer.run(steps, Never())
    assert len(steps.results) == 8  # an overflow in between neither counts nor forgives


def test_overflows_alone_never_do(train_config: TrainConfig, tmp_path: Path) -> None:
    trainer = trainer_of(train_config, tmp_path, [OVERFLOW] * 10)
    steps = Steps()
    assert trainer.run(steps, Never())
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
    trainer = on_source(trainer, (tmp_path / "images").rename(tmp_path / "moved"))
    trainer.resume()
    table = tmp_path / "moved" / "img_txt.csv"
    table.write_text(table.read_text().replace("picture 3", "picture three"))
    trainer = on_source(trainer, tmp_path / "moved")
    with pytest.raises(ConfigError, match=r"moved: images, captions or their order have changed since the checkpoint"):
        trainer.resume()
    del saved.progress["data_digest"]  # as before there was one
    trainer.checkpoints.save(4, saved)
    trainer.resume()


def test_a_resume_notices_that_other_images_are_held_out(train_config: TrainConfig, tmp_path: Path) -> None:
    validation = ValidationConfig(every_samples=40, count=2)
    trainer = trainer_of(train_config.model_copy(update={"validation": validation}), tmp_path, [])
    trainer.state.progress.held_out_digest = "a"
    saved = trainer.state.to_checkpoint()
    trainer.checkpoints.save(3, saved)
    trainer.resume()
    trainer.state.progress.held_out_digest = "b"
    with pytest.raises(ConfigError, match="the held-out images have changed since the checkpoint; put them back"):
        trainer.resume()
    del saved.progress["held_out_digest"]  # as before there was one
    trainer.checkpoints.save(4, saved)
    with pytest.raises(ConfigError, match="the version that began the run chose other images to hold out"):
        trainer.resume()
    apart = validation.model_copy(update={"count": None, "path": tmp_path})
    with_parts(trainer, config=trainer.config.model_copy(update={"validation": apart})).resume()


def test_a_resume_keeps_what_changed_and_refuses_what_may_not(
    train_config: TrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = trainer_of(train_config, tmp_path, [])
    trainer.state.progress.samples_seen = 12
    saved = trainer.state.to_checkpoint()
    saved.record["train"] = dump_yaml(trainer.config)
    trainer.checkpoints.save(3, saved)
    begun = trainer.config
    sampling = begun.sampling.model_copy(update={"steps": 3})
    data = begun.data.model_copy(update={"workers": 2})
    precision = begun.precision.model_copy(update={"compute_dtype": "bfloat16"})  # on another accelerator
    changed = begun.model_copy(update={"sampling": sampling, "data": data, "precision": precision})
    trainer = with_parts(trainer, config=changed)
    with caplog.at_level("INFO"):
        trainer.resume()
    assert "the recipe changed: sampling.steps was 15, now 3" in caplog.text
    assert "workers" not in caplog.text  # of the machine
    (change,) = trainer.state.progress.recipe_changes
    assert change.pop("unix_s") > 1.7e9
    assert change == {"samples_seen": 12, "key": "sampling.steps", "before": 15, "after": 3}

    again = trainer.state.to_checkpoint()  # with what changed before
    again.record["train"] = dump_yaml(trainer.config)
    trainer.checkpoints.save(4, again)
    trainer = with_parts(trainer, config=trainer.config.model_copy(update={"final_samples": 0}))
    trainer.resume()
    assert [each["key"] for each in trainer.state.progress.recipe_changes] == ["sampling.steps", "final_samples"]
    trainer = with_parts(trainer, config=begun.model_copy(update={"seed": 1}))
    with pytest.raises(
        ConfigError, match=r"checkpoint of step 4: belongs to a different recipe: seed \(0 there, 1 here"
    ):
        trainer.resume()


def test_a_run_acts_in_a_fixed_order_between_steps(train_config: TrainConfig, tmp_path: Path) -> None:
    """Snapshots before the checkpoint that a resumed run starts from; losses before the checkpoint that they rank."""
    write_images(tmp_path / "images", 8)
    tree = train_config.model_dump() | {"validation": {"every_samples": 8, "count": 2}}
    tree["data"] |= {"path": tmp_path / "images"}
    tree["ema"] |= {"snapshot_every_samples": 8}
    tree["previews"] = {"every_samples": 8, "prompts": ["a"]}
    trainer = built(TrainConfig.model_validate(tree), tmp_path / "run")
    names = ["EmaSnapshots", "Validation", "Previews", "CheckpointSaver"]
    assert [type(each).__name__ for each in trainer.periodic] == names
    assert trainer.periodic[-1].validation is trainer.periodic[1]


def test_buckets_train_at_several_shapes(
    train_config: TrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = ["dir,text"]
    for number in range(16):
        size = ((40, 40), (80, 20))[number % 2]
        Image.new("RGB", size, (10 * number, 90, 200)).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,picture {number}")
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    raw = train_config.model_dump() | {"total_samples": 16}
    raw["data"] |= {"path": tmp_path, "buckets": {"multiple_px": 4, "max_aspect": 4.0}}
    config = TrainConfig.model_validate(raw)
    trainer = built(config, tmp_path / "run")
    shapes, whole = [], trainer.step

    def step(batch: Batch) -> Any:
        shapes.append(batch.images.shape[2:])
        return whole(batch)

    trainer = with_parts(trainer, step=step)
    steps = Steps()
    before = trainer.state.weights.copy()
    with caplog.at_level("INFO"):
        assert trainer.run(steps, Never())
    assert "2 graph shapes, each compiled at its first batch: 8 x 8: 8, 16 x 4: 8" in caplog.text
    assert sorted(shapes) == [(4, 16), (4, 16), (8, 8), (8, 8)]
    assert steps.phases.count("compiling") == 2
    assert all(result.finite and math.isfinite(result.loss) for result in steps.results)
    assert np.abs(trainer.state.weights - before).max() > 1e-4


def test_two_folders_train_in_proportion_and_a_resume_goes_on_the_same(
    train_config: TrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folders = tmp_path / "many", tmp_path / "few"
    write_images(folders[0], 8)
    write_images(folders[1], 2)
    raw = train_config.model_dump() | {"total_samples": 24, "checkpoint": {"every_samples": 12}}
    sources = ({"path": folders[0], "weight": 0.5}, {"path": folders[1], "weight": 4})
    raw["data"] |= {"path": None, "sources": sources}
    config = TrainConfig.model_validate(raw)
    seen: list[int] = []

    def train(checkpoints: str, steps: int) -> Any:
        """So many steps, from where the checkpoints are."""
        made = built(config, tmp_path / checkpoints)
        one_step, stop = made.step, Never()
        last = made.resume().step + steps

        def step(batch: Batch) -> Any:
            seen.extend(batch.sample_ids.tolist())
            result = one_step(batch)
            stop.received = result.step == last
            return result

        made = with_parts(made, step=step)
        made.run(Hook(), stop)
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
    np.testing.assert_array_equal(resumed.state.full(None), whole.state.full(None))


def test_buckets_must_fit_the_latents_and_the_resolution(train_config: TrainConfig) -> None:
    raw = train_config.model_dump()
    for multiple_px, message in ((1, "multiple_px 1 is not divisible by 2"), (3, "resolution 8 is not a multiple")):
        with pytest.raises(ValueError, match=message):
            TrainConfig.model_validate(raw | {"data": {**raw["data"], "buckets": {"multiple_px": multiple_px}}})
