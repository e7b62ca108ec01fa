"""Histories of made-up runs."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def step_row(step: int, **changes: Any) -> dict[str, Any]:
    """A row of metrics.jsonl, 16 samples a step; each step has other numbers."""
    return {
        "step": step,
        "samples_seen": 16 * step,
        "loss": 1 / step,
        "grad_norm": 2.0 + step,
        "learning_rate": 1e-4 * step,
        "finite": True,
        "overflow": False,
        "loss_scale": 1.0,
        "step_seconds": 0.5,
        "data_wait_seconds": 0.0625,
        "collective_seconds": 0.125,
        "images_per_second_per_device": 16.0,
        "unix_s": 1.8e9 + step,
    } | changes


def loss_row(step: int, first: int, last: int, loss: float | None, **changes: Any) -> dict[str, Any]:
    """A row of validation.jsonl; log SNR falls from 4 at timestep 0 to -4 at 999."""
    return {
        "step": step,
        "samples_seen": 16 * step,
        "weights": "raw",
        "first_timestep": first,
        "last_timestep": last,
        "log_snr_high": 4 - first / 125,
        "log_snr_low": 4 - (last + 1) / 125,
        "loss": loss,
        "standard_error": 0.01,
        "images": 8,
    } | changes


def write_rows(path: Path, rows: Iterable[Mapping[str, Any] | str]) -> Path:
    """Write a line for each row; text is written as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path
