"""A training that is compiled in a moment: its model, its recipe and its batches."""

from typing import Any

import numpy as np

from data import Batch
from vpred_train.config.train import TrainConfig

MODEL: dict[str, Any] = {
    "vae": None,
    "space_to_depth": 2,
    "unet": {
        "in_channels": 12,
        "model_channels": 8,
        "channel_multipliers": [1, 2],
        "res_blocks": 1,
        "attention_levels": [1],
        "head_channels": 8,
        "context_channels": 16,
        "norm_groups": 4,
    },
    "text_encoder": {"width": 16, "heads": 2, "layers": 1, "context_length": 8},
}

DOCUMENT: dict[str, Any] = {
    "total_samples": 80,
    "global_batch": 4,
    "trainable": ["unet", "text_encoder"],
    "data": {"path": ".", "resolution": 8},
    "model": MODEL,
    "optimizer": {"learning_rate": 1e-3},
    "schedule": {"warmup_samples": 8},
    "ema": {"profiles": ["constant", "mindone", "power"]},
    "checkpoint": {"every_samples": 40},
}


def batch(config: TrainConfig, number: int) -> Batch:
    rng = np.random.default_rng(number)
    size = config.global_batch
    return Batch(
        arrays={"images": rng.uniform(-1, 1, (size, 3, 8, 8)).astype(np.float32)},
        captions=tuple(f"caption {index}" for index in range(size)),
        epochs=np.full(size, number),
        sample_ids=np.arange(size),
        places=np.arange(size),
        samples_seen=(number + 1) * size,
        wait_s=0.0,
    )
