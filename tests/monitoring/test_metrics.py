"""Metrics as Prometheus sees them: scraped over HTTP and parsed, not read from the objects."""

import math
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from monitoring import MonitorError, WorkerMetrics, start_exporter
from support import CHECKOUT

LABELS = {"rank": "3", "local_rank": "1", "hostname": "node-a"}
STEP = {
    "loss": 0.25,
    "grad_norm": 1.5,
    "learning_rate": 1e-4,
    "samples_seen": 12_016,
    "step_seconds": 0.4,
    "data_wait_seconds": 0.003,
    "collective_seconds": 0.02,
    "images_per_second": 40.0,
    "images_per_second_per_device": 20.0,
    "model_flops_per_second": 3e10,
    "mfu_ratio": 0.3,
    "finite": True,
    "overflow": False,
    "loss_scale": 1024.0,
}

SAVED = {
    "step": 12,
    "size_bytes": 123_456,
    "total_s": 0.7,
    "stall_s": 0.1,
    "stage_s": 0.1,
    "write_s": 0.5,
    "commit_s": 0.05,
}


def scrape(metrics: WorkerMetrics) -> dict[str, dict[str, float]]:
    """{sample name: {labels beyond LABELS, as text: value}} as served over HTTP."""
    exporter = start_exporter(metrics.registry, "127.0.0.1", 0)
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
    return WorkerMetrics(rank=3, local_rank=1, hostname="node-a")


def test_held_out_losses_are_told_apart_by_weights_and_timesteps(metrics: WorkerMetrics) -> None:
    assert "vpred_validation_loss" not in scrape(metrics)
    metrics.observe_validation("raw", "0-499", 0.5, 0.01)
    metrics.observe_validation("constant", "0-499", 0.4, 0.02)
    metrics.observe_validation("raw", "0-499", 0.3, 0.03)
    found = scrape(metrics)
    raw, averaged = (str({"weights": weights, "timesteps": "0-499"}) for weights in ("raw", "constant"))
    assert by_labels(found["vpred_validation_loss"]) == by_labels({raw: 0.3, averaged: 0.4})
    assert by_labels(found["vpred_validation_loss_standard_error"]) == by_labels({raw: 0.03, averaged: 0.02})


def test_step_values_arrive_with_their_labels(metrics: WorkerMetrics) -> None:
    before = time.time()
    metrics.observe_step(STEP)
    found = scrape(metrics)
    assert found["vpred_loss"] == {"": 0.25}
    assert found["vpred_grad_norm"] == {"": 1.5}
    assert found["vpred_learning_rate"] == {"": 1e-4}
    assert found["vpred_samples_seen"] == {"": 12_016}
    assert found["vpred_images_per_second"] == {"": 40.0}
    assert found["vpred_images_per_second_per_device"] == {"": 20.0}
    assert found["vpred_model_flops_per_second"] == {"": 3e10}
    assert found["vpred_mfu_ratio"] == {"": 0.3}
    assert found["vpred_optimizer_steps_total"] == {"": 1}
    assert found["vpred_nonfinite_steps_total"] == {"": 0}
    assert found["vpred_overflow_steps_total"] == {"": 0}
    assert found["vpred_loss_scale"] == {"": 1024}
    assert before <= found["vpred_last_step_timestamp_seconds"][""] <= time.time()


@pytest.mark.parametrize("field", STEP)
def test_a_missing_number_of_a_step_is_an_error(metrics: WorkerMetrics, field: str) -> None:
    """A row of the tables that nothing feeds would be a metric that never moves."""
    skipped = STEP | {"finite": False}  # `overflow` is looked at only then
    with pytest.raises(KeyError, match=field):
        metrics.observe_step({name: number for name, number in skipped.items() if name != field})


def test_the_ceiling_is_there_from_the_start(metrics: WorkerMetrics) -> None:
    metrics.observe_ceiling(1e11)
    found = scrape(metrics)
    assert found["vpred_matmul_ceiling_flops_per_second"] == {"": 1e11}
    assert "vpred_mfu_ratio" not in found


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


def test_step_duration_falls_into_the_right_bucket(metrics: WorkerMetrics) -> None:
    for seconds in (0.4, 0.4, 7.0):
        metrics.observe_step({**STEP, "step_seconds": seconds})
    found = scrape(metrics)
    buckets = found["vpred_step_seconds_bucket"]
    assert buckets["{'le': '0.25'}"] == 0
    assert buckets["{'le': '0.5'}"] == 2
    assert buckets["{'le': '5.0'}"] == 2
    assert buckets["{'le': '+Inf'}"] == 3
    assert found["vpred_step_seconds_sum"][""] == pytest.approx(7.8)
    assert found["vpred_data_wait_seconds_count"] == {"": 3}
    assert found["vpred_collective_seconds_sum"] == {"": pytest.approx(0.06)}


def test_step_that_is_not_finite_is_counted_and_stays_visible(metrics: WorkerMetrics) -> None:
    metrics.observe_step(STEP)
    metrics.observe_step({**STEP, "loss": math.nan, "finite": False})
    found = scrape(metrics)
    assert found["vpred_nonfinite_steps_total"] == {"": 1}
    assert found["vpred_optimizer_steps_total"] == {"": 1}
    assert math.isnan(found["vpred_loss"][""])


def test_an_overflow_is_counted_apart(metrics: WorkerMetrics) -> None:
    metrics.observe_step({**STEP, "grad_norm": math.inf, "finite": False, "overflow": True})
    found = scrape(metrics)
    assert found["vpred_overflow_steps_total"] == {"": 1}
    assert found["vpred_nonfinite_steps_total"] == {"": 0}
    assert found["vpred_optimizer_steps_total"] == {"": 0}


def test_what_was_never_observed_is_absent_rather_than_zero(metrics: WorkerMetrics) -> None:
    found = scrape(metrics)
    for name in ("vpred_loss", "vpred_last_checkpoint_timestamp_seconds", "vpred_checkpoint_size_bytes"):
        assert name not in found
    assert found["vpred_optimizer_steps_total"] == {"": 0}  # a counter must be there before it counts


def test_checkpoint_age_counts_from_the_start_and_then_from_the_last_one(
    metrics: WorkerMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr("monitoring.metrics.time.time", lambda: now + 100)
    assert scrape(metrics)["vpred_checkpoint_age_seconds"][""] == pytest.approx(100, abs=5)
    metrics.observe_checkpoint(SAVED)
    monkeypatch.setattr("monitoring.metrics.time.time", lambda: now + 130)
    found = scrape(metrics)
    assert found["vpred_checkpoint_age_seconds"][""] == pytest.approx(30)
    assert found["vpred_last_checkpoint_timestamp_seconds"][""] == pytest.approx(now + 100)
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
    found = scrape(metrics)
    resident = psutil.Process().memory_info().rss
    assert found["vpred_process_resident_memory_bytes"][""] == pytest.approx(resident, rel=0.2)
    assert 0 < found["vpred_host_memory_available_bytes"][""] < psutil.virtual_memory().total
    assert [value for labels, value in found["vpred_run_info"].items() if f"'pid': '{os.getpid()}'" in labels] == [1]


def test_names_follow_the_conventions(metrics: WorkerMetrics) -> None:
    metrics.observe_step(STEP)
    metrics.observe_checkpoint(SAVED)
    for family in metrics.registry.collect():
        assert re.fullmatch(r"vpred_[a-z_]+", family.name), family.name
        assert not re.search(r"_(ms|milliseconds|kb|mb|gb|percent)(_|$)", family.name), family.name
        assert family.documentation.endswith("."), family.name
        if family.type == "histogram":
            assert family.name.endswith("_seconds"), family.name


def test_two_workers_share_nothing() -> None:
    first, second = WorkerMetrics(0, 0, "h"), WorkerMetrics(1, 1, "h")
    first.observe_step(STEP)
    assert second.registry.get_sample_value(
        "vpred_optimizer_steps_total", {"rank": "1", "local_rank": "1", "hostname": "h"}
    ) == pytest.approx(0)


def test_port_in_use_is_the_users_mistake_and_names_the_port(metrics: WorkerMetrics) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(MonitorError, match=rf"127\.0\.0\.1:{port} .*in use.*base_port"):
            start_exporter(metrics.registry, "127.0.0.1", port)


@pytest.mark.parametrize(("address", "port"), [("127.0.0.1", 70_000), ("192.0.2.1", 0), ("no.such.host.invalid", 0)])
def test_impossible_address_is_the_users_mistake(metrics: WorkerMetrics, address: str, port: int) -> None:
    with pytest.raises(MonitorError, match=re.escape(f"{address}:{port}")):
        start_exporter(metrics.registry, address, port)


def test_closing_frees_the_port(metrics: WorkerMetrics) -> None:
    exporter = start_exporter(metrics.registry, "127.0.0.1", 0)
    exporter.close()
    again = start_exporter(metrics.registry, "127.0.0.1", exporter.port)
    assert again.port == exporter.port
    again.close()


def test_metrics_stay_in_memory_whatever_the_environment_says(tmp_path):
    program = (
        "from prometheus_client import generate_latest; from monitoring import WorkerMetrics; "
        "m = WorkerMetrics(0, 0, 'n'); m.count_failed_checkpoint(); m.observe_ceiling(2.0); "
        "print(generate_latest(m.registry).decode())"
    )
    for folder in (tmp_path, tmp_path / "nowhere"):
        env = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(folder), "PYTHONPATH": str(CHECKOUT)}
        argv = [sys.executable, "-P", "-c", program]
        told = subprocess.run(argv, env=env, capture_output=True, text=True, check=True).stdout
        assert 'vpred_checkpoint_failures_total{hostname="n",local_rank="0",rank="0"} 1.0' in told
    assert list(tmp_path.iterdir()) == []
