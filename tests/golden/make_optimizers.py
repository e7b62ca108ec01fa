"""Make optimizers.npz: weights after 50 steps of torch's optimisers (torch 2.13.0).

    pip install torch==2.13.0 && python tests/golden/make_optimizers.py

The first tensor decays, the second does not; the learning rate falls, as a schedule would make it.
"""

from pathlib import Path

import numpy as np
import torch

STEPS = 50
SHAPES = ((9, 21), (40,))


def trained(optimizer_class: type[torch.optim.Optimizer], **options: float | tuple[float, float]) -> np.ndarray:
    """All weights, flat, after training on the gradients of the file."""
    weights = [torch.from_numpy(part.reshape(shape).copy()) for part, shape in zip(split(START), SHAPES, strict=True)]
    groups = [{"params": [weights[0]]}, {"params": [weights[1]], "weight_decay": 0.0}]
    optimizer = optimizer_class(groups, **options)
    for gradient, learning_rate in zip(GRADIENTS, LEARNING_RATES, strict=True):
        for tensor, part in zip(weights, split(gradient), strict=True):
            tensor.grad = torch.from_numpy(part.reshape(tensor.shape).copy())
        for group in optimizer.param_groups:
            group["lr"] = float(learning_rate)
        optimizer.step()
    return np.concatenate([tensor.numpy().reshape(-1) for tensor in weights])


def split(flat: np.ndarray) -> list[np.ndarray]:
    """One 1-D array for each tensor."""
    return np.split(flat, np.cumsum([int(np.prod(shape)) for shape in SHAPES])[:-1])


RNG = np.random.default_rng(0)
SIZE = sum(int(np.prod(shape)) for shape in SHAPES)
START = RNG.normal(0, 0.1, SIZE).astype(np.float32)
# Each element has a scale of its own, from 1e-6 to 10.
GRADIENTS = (10 ** RNG.uniform(-6, 1, SIZE) * RNG.standard_normal((STEPS, SIZE))).astype(np.float32)
LEARNING_RATES = 1e-2 * (1 - np.arange(STEPS) / STEPS)

if __name__ == "__main__":
    np.savez_compressed(
        Path(__file__).with_name("optimizers.npz"),
        start=START,
        gradients=GRADIENTS,
        learning_rates=LEARNING_RATES,
        adamw=trained(torch.optim.AdamW, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.1),
        sgd=trained(torch.optim.SGD, momentum=0.9, weight_decay=0.1),
    )
