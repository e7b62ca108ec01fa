"""A rank's speed in images and operations, and where it is told."""

import dataclasses
from pathlib import Path

import pytest

from monitoring import History, WorkerMetrics
from support.step_results import RESULT
from vpred_train.config.train import TrainConfig
from vpred_train.distributed.collectives import SingleProcess
from vpred_train.estimates.flops import flops_per_image
from vpred_train.training.hooks import speed
from vpred_train.training.hooks.reporting import HistoryHook, LogHook, MetricsHook
from vpred_train.training.hooks.speed import Rates, Speed, measure_speed
from vpred_train.training.report import speed_facts

SPEED = Speed(images_per_step=8, flops_per_step=5e9, matmul_flops_per_second=8e10)
RATES = Rates(images_per_second_per_device=32, model_flops_per_second=2e10, mfu_ratio=0.25)


class TwoRanks(SingleProcess):
    """One process in the place of two."""

    world_size = 2


def test_rates_of_a_step() -> None:
    assert SPEED.rates(0.25) == RATES


def test_a_rank_counts_its_own_share_however_it_is_cut(
    train_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "matmul_flops_per_second", lambda collective: 1e11)
    per_image = sum(each.total for each in flops_per_image(train_config).values())
    for parts in (1, 2):
        config = train_config.model_copy(update={"gradient_accumulation_steps": parts})
        assert measure_speed(config, SingleProcess()) == Speed(4, 4 * per_image, 1e11)
        assert measure_speed(config, TwoRanks()) == Speed(2, 2 * per_image, 1e11)


def test_the_ceiling_is_that_of_the_linear_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on by a second at each look: 2 products of 2 * 1024^3 operations in one."""
    times = iter(range(100))
    monkeypatch.setattr(speed.time, "perf_counter", lambda: float(next(times)))
    assert speed.matmul_flops_per_second(SingleProcess()) == 2 * 2 * 1024**3


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
    metrics = WorkerMetrics(0, 0, "h")
    MetricsHook(metrics, train_config, SPEED).on_step(RESULT)
    labels = {"rank": "0", "local_rank": "0", "hostname": "h"}
    names = [*dataclasses.asdict(RATES), "matmul_ceiling_flops_per_second"]
    assert [metrics.registry.get_sample_value(f"vpred_{name}", labels) for name in names] == [32, 2e10, 0.25, 8e10]


def test_the_report_gives_medians_and_nothing_of_steps_that_tell_none() -> None:
    told = [dataclasses.asdict(SPEED.rates(seconds)) for seconds in (0.125, 0.25, 9.0)]
    facts = [("each device", "32.00 images/s, 20.0 GFLOP/s (25.0 % of its float32 matrix products)")]
    assert speed_facts([{"step_seconds": 1.0}, *told]) == facts
    assert speed_facts([{"step_seconds": 1.0}]) == []
