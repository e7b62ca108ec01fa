"""Metrics as Prometheus sees them: scraped over HTTP and parsed, not read from the objects."""

import math
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import asdict, replace

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from monitoring import METRICS, Exporter, MonitorError, RankLabels, WorkerMetrics
from monitoring.metrics import PAUSES
from support import CHECKOUT

RANK = RankLabels(run="cats", rank="0", local_rank="0", hostname="node-a", device_id="4")
LABELS = asdict(RANK)
STEP = {
    "loss": 0.25,
    "grad_norm": 1.5,
    "learning_rate": 1e-4,
    "step": 751,
    "samples_seen": 12_016,
    "finite": True,
    "overflow": False,
    "loss_scale": 1024.0,
}
INFO = next(row.labels for row in METRICS if row.name == "vpred_run_info")
PARTS_S = {"data": 0.003, "encode": 0.01, "forward_backward": 0.3, "collective": 0.05, "update": 0.037}
SAVED = {
    "step": 12,
    "size_bytes": 123_456,
    "total_s": 0.7,
    "stall_s": 0.1,
    "stage_s": 0.1,
    "write_s": 0.5,
    "commit_s": 0.05,
}


def step(metrics: WorkerMetrics, **changes: float) -> None:
    metrics.observe_step({**STEP, **changes}, PARTS_S, samples=8, flops=3e9)


def scrape(metrics: WorkerMetrics) -> dict[str, dict[str, float]]:
    """{sample name: {labels beyond LABELS, as text: value}} as served over HTTP."""
    exporter = Exporter(metrics.registry, "127.0.0.1", 0)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{exporter.port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    finally:
        exporter.close()
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            assert sample.labels.items() >= LABELS.items(), sample
            rest = {key: value for key, value in sample.labels.items() if key not in LABELS}
            found.setdefault(sample.name, {})[str(rest) if rest else ""] = sample.value
    return found


def by_labels(series: dict[str, float]) -> dict[frozenset[str], float]:
    """The same whatever the order of the labels."""
    return {frozenset(labels.strip("{}").split(", ")): value for labels, value in series.items()}


@pytest.fixture
def metrics() -> WorkerMetrics:
    return WorkerMetrics(RANK)


def test_held_out_losses_have_the_weights_and_the_noise_as_labels(metrics: WorkerMetrics) -> None:
    assert "vpred_validation_loss" not in scrape(metrics)
    metrics.observe_validation(40, "raw", "all", "5.0..-inf", 0.5, 0.01)
    metrics.observe_validation(40, "constant", "0", "5.0..1.0", 0.4, 0.02)
    metrics.observe_validation(80, "raw", "all", "5.0..-inf", 0.3, 0.03)
    found = scrape(metrics)
    whole = str({"bin": "all", "log_snr": "5.0..-inf", "weights": "raw"})
    part = str({"bin": "0", "log_snr": "5.0..1.0", "weights": "constant"})
    assert by_labels(found["vpred_validation_loss"]) == by_labels({whole: 0.3, part: 0.4})
    assert by_labels(found["vpred_validation_loss_standard_error"]) == by_labels({whole: 0.03, part: 0.02})
    assert found["vpred_validation_step"] == {"": 80}


def test_step_values_arrive_with_their_labels(metrics: WorkerMetrics) -> None:
    before = time.time()
    for _ in range(2):
        step(metrics)
    found = scrape(metrics)
    assert found["vpred_loss"] == {"": 0.25}
    assert found["vpred_grad_norm"] == {"": 1.5}
    assert found["vpred_learning_rate"] == {"": 1e-4}
    assert found["vpred_step"] == {"": 751}
    assert found["vpred_samples_seen"] == {"": 12_016}
    assert found["vpred_samples_total"] == {"": 16}
    assert found["vpred_model_flops_total"] == {"": 6e9}
    assert found["vpred_optimizer_steps_total"] == {"": 2}
    assert found["vpred_nonfinite_steps_total"] == {"": 0}
    assert found["vpred_overflow_steps_total"] == {"": 0}
    assert found["vpred_loss_scale"] == {"": 1024}
    assert before <= found["vpred_last_step_timestamp_seconds"][""] <= time.time()


def test_the_parts_of_steps_add_up_to_the_steps(metrics: WorkerMetrics) -> None:
    for _ in range(3):
        step(metrics)
    found = scrape(metrics)
    assert found["vpred_step_seconds_count"] == {"": 3}
    assert found["vpred_step_seconds_sum"][""] == pytest.approx(3 * 0.4)
    assert sum(found["vpred_step_part_seconds_total"].values()) == pytest.approx(3 * 0.4)
    assert found["vpred_step_part_seconds_total"]["{'part': 'update'}"] == pytest.approx(3 * 0.037)


@pytest.mark.parametrize("name", STEP)
def test_a_missing_number_of_a_step_is_an_error(metrics: WorkerMetrics, name: str) -> None:
    """A row that nothing feeds would be a metric that never moves."""
    skipped = STEP | {"finite": False}  # `overflow` is looked at only then
    del skipped[name]
    with pytest.raises(KeyError, match=name):
        metrics.observe_step(skipped, PARTS_S, samples=8, flops=3e9)


def test_a_spike_between_two_scrapes_is_seen(metrics: WorkerMetrics) -> None:
    for grad_norm in (0.7, 7.8, 0.7):
        step(metrics, grad_norm=grad_norm)
    found = scrape(metrics)
    assert found["vpred_grad_norm"] == {"": 0.7}
    assert found["vpred_step_grad_norm_bucket"]["{'le': '5.0'}"] == 2
    assert found["vpred_step_grad_norm_bucket"]["{'le': '10.0'}"] == 3


def test_the_ceiling_is_there_from_the_start(metrics: WorkerMetrics) -> None:
    metrics.observe_ceiling(1e11)
    assert scrape(metrics)["vpred_flops_ceiling"] == {"": 1e11}


def test_device_memory_has_a_series_for_each_kind_that_the_device_reports(metrics: WorkerMetrics) -> None:
    metrics.observe_device_memory({})
    assert "vpred_device_memory_bytes" not in scrape(metrics)
    metrics.observe_device_memory({"allocated": 5, "peak": 9})
    metrics.observe_device_memory({"allocated": 4, "peak": 9})
    assert scrape(metrics)["vpred_device_memory_bytes"] == {"{'kind': 'allocated'}": 4, "{'kind': 'peak'}": 9}


def test_compilations_are_those_of_the_process(metrics: WorkerMetrics) -> None:
    assert "vpred_graph_compile_seconds" not in scrape(metrics)
    metrics.observe_compilations(seconds=2.5, cache_hits=1)
    found = scrape(metrics)
    assert found["vpred_graph_compile_seconds"] == {"": 2.5}
    assert found["vpred_graph_cache_hits"] == {"": 1}


def test_step_that_is_not_finite_is_counted_and_stays_visible(metrics: WorkerMetrics) -> None:
    """One NaN must not spoil the sums of all later steps."""
    step(metrics)
    step(metrics, loss=math.nan, grad_norm=math.nan, finite=False)
    found = scrape(metrics)
    assert found["vpred_nonfinite_steps_total"] == {"": 1}
    assert found["vpred_optimizer_steps_total"] == {"": 1}
    assert math.isnan(found["vpred_loss"][""])
    assert (found["vpred_step_loss_sum"], found["vpred_step_loss_count"]) == ({"": 0.25}, {"": 1})
    assert found["vpred_step_grad_norm_count"] == {"": 1}


def test_an_overflow_is_counted_apart(metrics: WorkerMetrics) -> None:
    step(metrics, grad_norm=math.inf, finite=False, overflow=True)
    found = scrape(metrics)
    assert found["vpred_overflow_steps_total"] == {"": 1}
    assert found["vpred_nonfinite_steps_total"] == {"": 0}
    assert found["vpred_optimizer_steps_total"] == {"": 0}


def test_what_was_never_observed_is_absent_rather_than_zero(metrics: WorkerMetrics) -> None:
    found = scrape(metrics)
    for name in ("vpred_loss", "vpred_last_checkpoint_timestamp_seconds", "vpred_checkpoint_size_bytes"):
        assert name not in found
    assert found["vpred_optimizer_steps_total"] == {"": 0}  # a counter must be there before it counts
    assert found["vpred_pause_seconds_total"].keys() == {f"{{'cause': '{each}'}}" for each in PAUSES}


def test_the_newest_checkpoint_is_known_after_a_resume_and_after_a_save(metrics: WorkerMetrics) -> None:
    metrics.observe_newest_checkpoint(8, 1_700_000_000.5)
    found = scrape(metrics)
    assert found["vpred_last_checkpoint_timestamp_seconds"] == {"": 1_700_000_000.5}
    assert found["vpred_checkpoint_last_step"] == {"": 8}
    before = time.time()
    metrics.observe_checkpoint(SAVED)
    found = scrape(metrics)
    assert before <= found["vpred_last_checkpoint_timestamp_seconds"][""] <= time.time()
    assert found["vpred_checkpoint_size_bytes"] == {"": 123_456}
    assert found["vpred_checkpoint_save_seconds_sum"] == {"": 0.7}
    assert found["vpred_checkpoint_stall_seconds_sum"] == {"": 0.1}
    assert found["vpred_checkpoint_last_step"] == {"": 12}
    assert sorted(found["vpred_checkpoint_phase_seconds"].values()) == [0.05, 0.1, 0.5]
    assert found["vpred_checkpoint_failures_total"] == {"": 0}
    metrics.count_failed_checkpoint()
    metrics.count_quarantined(2)
    found = scrape(metrics)
    assert found["vpred_checkpoint_failures_total"] == {"": 1}
    assert found["vpred_checkpoints_quarantined_total"] == {"": 2}


def test_bad_samples_are_told_even_when_there_are_none(metrics: WorkerMetrics) -> None:
    assert "vpred_bad_samples" not in scrape(metrics)
    for count in (0, 3):
        metrics.observe_left_out(count)
        assert scrape(metrics)["vpred_bad_samples"] == {"": count}


def test_memory_is_read_when_scraped(metrics: WorkerMetrics) -> None:
    resident = psutil.Process().memory_info().rss
    assert scrape(metrics)["vpred_process_resident_memory_bytes"][""] == pytest.approx(resident, rel=0.2)


def test_names_follow_the_conventions() -> None:
    for row in METRICS:
        assert re.fullmatch(r"vpred_[a-z_]+", row.name), row.name
        assert not re.search(r"_(ms|milliseconds|kb|mb|gb|percent)(_|$)", row.name), row.name
        assert row.meaning.endswith("."), row.name
        assert row.name.endswith("_total") == (row.kind == "counter"), row.name


def observed(rank: str) -> WorkerMetrics:
    """The metrics of a rank to which all that can happen has happened."""
    metrics = WorkerMetrics(replace(RANK, rank=rank, local_rank=rank))
    metrics.observe_run(dict.fromkeys(INFO, "x"), total_steps=9, total_samples=144, global_batch=16)
    metrics.observe_ceiling(1e11)
    metrics.observe_checkpoint_interval(64)
    metrics.observe_left_out(1)
    metrics.observe_device_memory({"allocated": 1, "reserved": 2, "peak": 3})
    metrics.observe_compilations(seconds=1, cache_hits=0)
    metrics.observe_step(STEP, {**PARTS_S, "graph": 0.0}, samples=8, flops=3e9)
    metrics.observe_checkpoint(SAVED)
    metrics.observe_validation(1, "raw", "all", "5.0..-inf", 0.5, 0.01)
    return metrics


def test_every_row_is_fed_and_other_ranks_have_at_most_20_series() -> None:
    families = {family.name: len(family.samples) for family in observed("0").registry.collect()}
    for row in METRICS:
        assert families[row.name.removesuffix("_total")] > 0, row.name
    assert sum(len(family.samples) for family in observed("1").registry.collect()) == 20


def test_two_workers_share_nothing() -> None:
    first, second = WorkerMetrics(RANK), WorkerMetrics(RANK)
    step(first)
    assert second.registry.get_sample_value("vpred_optimizer_steps_total", LABELS) == 0


def test_port_in_use_is_the_users_mistake_and_names_the_port(metrics: WorkerMetrics) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(MonitorError, match=rf"127\.0\.0\.1:{port} .*in use.*base_port"):
            Exporter(metrics.registry, "127.0.0.1", port)


@pytest.mark.parametrize(("address", "port"), [("127.0.0.1", 70_000), ("192.0.2.1", 0), ("no.such.host.invalid", 0)])
def test_impossible_address_is_the_users_mistake(metrics: WorkerMetrics, address: str, port: int) -> None:
    with pytest.raises(MonitorError, match=re.escape(f"{address}:{port}")):
        Exporter(metrics.registry, address, port)


def test_closing_frees_the_port(metrics: WorkerMetrics) -> None:
    exporter = Exporter(metrics.registry, "127.0.0.1", 0)
    exporter.close()
    again = Exporter(metrics.registry, "127.0.0.1", exporter.port)
    assert again.port == exporter.port
    again.close()


def test_metrics_stay_in_memory_whatever_the_environment_says(tmp_path):
    program = (
        "from prometheus_client import generate_latest; from monitoring import RankLabels, WorkerMetrics; "
        "m = WorkerMetrics(RankLabels('r', '0', '0', 'n', '0')); m.count_failed_checkpoint(); m.observe_ceiling(2.0); "
        "print(generate_latest(m.registry).decode())"
    )
    for folder in (tmp_path, tmp_path / "nowhere"):
        env = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(folder), "PYTHONPATH": str(CHECKOUT)}
        argv = [sys.executable, "-P", "-c", program]
        told = subprocess.run(argv, env=env, capture_output=True, text=True, check=True).stdout
        assert 'vpred_checkpoint_failures_total{device_id="0",hostname="n",local_rank="0",rank="0",run="r"} 1.0' in told
    assert list(tmp_path.iterdir()) == []
