"""Collects the facts of a finished run for `monitoring.render_report`."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from launcher.contract.files import write_atomic
from launcher.contract.run_dir import RunDir, Summary
from monitoring import History, read_attempts, read_validations, render_report
from vpred_train.config.train import TrainConfig


def write_report(
    config: TrainConfig,
    run: RunDir,
    summary: Summary,
    history: Sequence[dict[str, Any]],
    grids: Sequence[Path],
    world_size: int,
    recipe_changes: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write report.html, one self-contained file."""
    step_seconds = median(record["step_seconds"] for record in history)
    waited = sum(record["data_wait_seconds"] for record in history)
    facts = [
        ("ranks", str(world_size)),
        ("optimiser steps", f"{summary.steps:,}"),
        ("samples seen", f"{summary.samples_seen:,}"),
        ("global batch", str(config.global_batch)),
        ("training time", f"{summary.seconds:.0f} s"),
        (
            "median step",
            f"{1000 * step_seconds:.0f} ms ({config.global_batch / step_seconds:.1f} images/s over all ranks)",
        ),
        *speed_facts(history),
        ("waiting for data", f"{100 * waited / summary.seconds:.2f} % of the time"),
        ("final loss", f"{summary.final_loss:.4f}"),
        *retrieval_facts(summary),
        (
            "sampler",
            f"{config.sampling.sampler}, {config.sampling.steps} steps, guidance {config.sampling.guidance_scale}",
        ),
    ]
    validations = History(run.validation_jsonl).read()
    facts += validation_facts(validations) + change_facts(recipe_changes)
    documents = [
        (path.name, path.read_text(encoding="utf-8")) for path in (run.train_yaml, run.cluster_yaml) if path.exists()
    ]
    html = render_report(
        title=f"Training run {run.root.name}",
        facts=facts,
        history=history,
        images_per_step=config.global_batch,
        images=[
            ("Training prompts: real image, then the sample of the EMA weights", path.read_bytes()) for path in grids
        ],
        documents=documents,
        validations=[each for each in validations if each["weights"] == config.ema.used and covers_all(each, config)],
        held_out=[each for each in read_validations(run.validation_jsonl) if each.weights == config.ema.used],
        attempts=read_attempts(run.root),
    )
    write_atomic(run.report_html, html)


def change_facts(recipe_changes: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """List each recipe key that changed when the run was resumed, and when it changed."""
    return [
        (
            f"recipe changed at {each['samples_seen']:,} samples",
            f"{each['key']}: {each['before']} before, {each['after']} after "
            f"({datetime.fromtimestamp(each['unix_s'], UTC):%Y-%m-%d %H:%M} UTC)",
        )
        for each in recipe_changes
    ]


def retrieval_facts(summary: Summary) -> list[tuple[str, str]]:
    """Say how often a sample is nearest to its own image. Empty for a run that ends without samples."""
    if summary.retrieval is None:
        return []
    return [
        ("nearest real image is the prompt's own", f"{100 * summary.retrieval:.1f} % of the prompts (pixel cosine)")
    ]


def speed_facts(history: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Say how fast each device trained, as medians over the steps. Empty when the steps hold no such rates."""
    told = [record for record in history if "mfu_ratio" in record]
    if not told:
        return []
    images, flops, mfu = (
        median(record[key] for record in told)
        for key in ("images_per_second_per_device", "model_flops_per_second", "mfu_ratio")
    )
    rate = f"{images:.2f} images/s, {flops / 1e9:,.1f} GFLOP/s"
    return [("each device", f"{rate} ({100 * mfu:.1f} % of its float32 matrix products)")]


def covers_all(record: Mapping[str, Any], config: TrainConfig) -> bool:
    """Return whether a held-out loss covers all timesteps."""
    return bool(record["last_timestep"] - record["first_timestep"] + 1 == config.diffusion.timesteps)


def validation_facts(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """List the name and value of each held-out loss after the last step."""
    return [
        (
            f"held-out loss, {each['weights']} weights, timesteps {each['first_timestep']} to {each['last_timestep']}",
            f"{each['loss']:.4f} +- {each['standard_error']:.4f} (standard error over {each['images']} images)",
        )
        for each in records
        if each["step"] == records[-1]["step"]
    ]
