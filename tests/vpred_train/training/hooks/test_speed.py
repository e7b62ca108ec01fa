"""A rank's speed in images and operations, and where it is told."""

import dataclasses
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from mindspore import Tensor

from checkpoints_mgr import SaveResult
from launcher.contract.accelerators import ACCELERATORS, ComputeDtype
from monitoring import History, RankLabels, WorkerMetrics
from support.step_results import RESULT
from vpred_train.config.train import TrainConfig
from vpred_train.distributed.collectives import SingleProcess
from vpred_train.engine.graph_cache import Compilations
from vpred_train.estimates.flops import flops_per_image
from vpred_train.training.hooks import speed
from vpred_train.training.hooks.reporting import HistoryHook, LogHook, MetricsHook
from vpred_train.training.hooks.speed import Rates, Speed, measure_speed
from vpred_train.training.report import speed_facts

SPEED = Speed(images_per_step=8, flops_per_step=5e9, matmul_flops_per_second=8e10)
RANK = RankLabels(run="cats", rank="0", local_rank="0", hostname="h", device_id="0")
RATES = Rates(images_per_second_per_device=32, model_flops_per_second=2e10, mfu_ratio=0.25)


class TwoRanks(SingleProcess):
    """One process in the place of two."""

    world_size = 2


def test_rates_of_a_step() -> None:
    assert SPEED.rates(0.25) == RATES


def test_a_rank_counts_its_own_share_however_it_is_cut(
    train_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    precision = train_config.precision.on(ACCELERATORS["cpu"])
    monkeypatch.setattr(speed, "matmul_flops_per_second", lambda collective, *how: asked.append(how) or 1e11)
    per_image = sum(each.total for each in flops_per_image(train_config).values())
    for parts in (1, 2):
        config = train_config.model_copy(update={"gradient_accumulation_steps": parts, "precision": precision})
        assert measure_speed(config, SingleProcess(), 64) == Speed(4, 4 * per_image, 1e11)
        assert measure_speed(config, TwoRanks(), 64) == Speed(2, 2 * per_image, 1e11)
    assert set(asked) == {(64, "float32")}


@pytest.mark.parametrize(("dtype", "found"), [("float32", 1 + 2**-12), ("float16", 1)])
def test_the_ceiling_is_measured_in_the_compute_dtype(dtype: ComputeDtype, found: float) -> None:
    """By a number that float16 rounds, and products that keep it."""
    products = speed.Products(16, dtype)
    products.linear.weight.set_data(Tensor(np.eye(16, dtype=np.float32)))
    x = np.full((16, 16), 1 + 2**-12, np.float32)
    assert products(Tensor(x)).asnumpy() == 16 * 16 * found


def test_the_ceiling_counts_the_operations_of_its_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on by a second at each look: 2 products of 2 * 256^3 operations in one."""
    times = iter(range(100))
    monkeypatch.setattr(speed.time, "perf_counter", lambda: float(next(times)))
    assert speed.matmul_flops_per_second(SingleProcess(), 256, "float32") == 2 * 2 * 256**3


def test_log_history_and_metrics_tell_it(
    train_config: TrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    LogHook(train_config, SPEED).on_step(RESULT)
    assert "0.25 s (data 10.0 ms), 32.00 images/s/device, MFU 25.0 %" in caplog.text
    history = History(tmp_path / "metrics.jsonl")
    HistoryHook(history, History(tmp_path / "validation.jsonl"), SPEED).on_step(RESULT)
    (record,) = history.read()
    numbers = {**dataclasses.asdict(RESULT), **dataclasses.asdict(RATES)}
    del numbers["nonfinite_samples"]  # for the log alone
    assert record.items() >= numbers.items()
    metrics = WorkerMetrics(RANK)
    compilations = Compilations(seconds=2.0)  # before the first step
    hook = MetricsHook(metrics, SPEED, compilations)
    compilations.seconds += 0.125
    hook.on_step(RESULT)
    hook.on_pause("validation", 0.75)
    value = partial(metrics.registry.get_sample_value, labels=dataclasses.asdict(RANK))
    totals = [value(f"vpred_{name}") for name in ("samples_total", "model_flops_total", "flops_ceiling")]
    assert totals == [8, 5e9, 8e10]
    assert value("vpred_step_seconds_sum") == 0.125  # a step that compiles would be the slowest of the night
    pauses = {
        cause: metrics.registry.get_sample_value(
            "vpred_pause_seconds_total", dataclasses.asdict(RANK) | {"cause": cause}
        )
        for cause in ("compile", "validation", "checkpoint")
    }
    assert pauses == {"compile": 0.125, "validation": 0.75, "checkpoint": 0}


def test_metrics_tell_a_checkpoint_by_its_phases() -> None:
    metrics = WorkerMetrics(RANK)
    saved = SaveResult(7, Path("step"), 123, total_s=4.0, stall_s=0.5, stage_s=1.0, write_s=2.0, commit_s=0.25)
    MetricsHook(metrics, SPEED, Compilations()).on_checkpoint(saved)
    labels = dataclasses.asdict(RANK)
    names = ("checkpoint_last_step", "checkpoint_size_bytes", "checkpoint_save_seconds_sum")
    assert [metrics.registry.get_sample_value(f"vpred_{name}", labels) for name in names] == [7, 123, 4]
    phases = [
        metrics.registry.get_sample_value("vpred_checkpoint_phase_seconds", labels | {"phase": phase})
        for phase in ("stage", "write", "commit")
    ]
    assert phases == [1, 2, 0.25]


def test_the_report_gives_medians_and_nothing_of_steps_that_tell_none() -> None:
    told = [dataclasses.asdict(SPEED.rates(seconds)) for seconds in (0.125, 0.25, 9.0)]
    facts = [("each device", "32.00 images/s, 20.0 GFLOP/s (25.0 % of its float32 matrix products)")]
    assert speed_facts([{"step_seconds": 1.0}, *told]) == facts
    assert speed_facts([{"step_seconds": 1.0}]) == []
