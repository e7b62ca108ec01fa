"""Runs Stable Diffusion 2's most demanding layers at 768 pixels, forward and backward, at batch size 1."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from mindspore import Tensor

from launcher.contract.accelerators import ComputeDtype
from vpred_train.doctor.check import Item, Measured
from vpred_train.doctor.comparison import Differentiated, Rng, WeightedSum, flat
from vpred_train.doctor.station import Station
from vpred_train.host_copies import to_host
from vpred_train.models.attention import GEGLU, Attention
from vpred_train.models.layers import Conv2d

REMEDY = (
    "update CANN; take the other implementation (operations in the cluster file); recompute: true needs less memory"
)


@dataclass(frozen=True)
class Extreme:
    """Is one layer.

    shapes: shapes of the inputs at 768 pixels
    reduced: those on cpu, where the full ones take minutes
    """

    make: Callable[[Rng], Any]
    shapes: tuple[tuple[int, ...], ...]
    reduced: tuple[tuple[int, ...], ...]


EXTREMES: dict[str, Extreme] = {
    "convolution of the finest level": Extreme(
        lambda rng: Conv2d(rng, 640, 640, 3), ((1, 640, 96, 96),), ((1, 640, 24, 24),)
    ),
    "convolution of the deepest level": Extreme(
        lambda rng: Conv2d(rng, 2560, 1280, 3), ((1, 2560, 12, 12),), ((1, 2560, 6, 6),)
    ),
    "self-attention of the finest level": Extreme(
        lambda rng: Attention(5, 64), ((1, 9216, 320),) * 3, ((1, 1152, 320),) * 3
    ),
    "cross-attention of the finest level": Extreme(
        lambda rng: Attention(5, 64),
        ((1, 9216, 320), (1, 77, 320), (1, 77, 320)),
        ((1, 9216, 320), (1, 77, 320), (1, 77, 320)),
    ),
    "attention of the autoencoder": Extreme(
        lambda rng: Attention(1, 512), ((1, 9216, 512),) * 3, ((1, 1152, 512),) * 3
    ),
    "GEGLU of 1280 channels": Extreme(lambda rng: GEGLU(rng, 1280, 5120), ((1, 576, 1280),), ((1, 36, 1280),)),
}


def items(station: Station) -> Sequence[Item]:
    """List the layers, in the dtype of the recipe."""
    dtype = station.config.precision.dtype
    return [
        Item(f"{name}, {dtype}", partial(run, extreme, dtype, station.on_cpu), REMEDY)
        for name, extreme in EXTREMES.items()
    ]


def run(extreme: Extreme, dtype: ComputeDtype, reduced: bool) -> Measured:
    """Run a layer forward and backward and count what is not finite."""
    rng = np.random.default_rng(3)
    cell = extreme.make(rng)
    shapes = extreme.reduced if reduced else extreme.shapes
    inputs = [Tensor(rng.standard_normal(shape).astype(np.float32)) for shape in shapes]
    step = Differentiated(WeightedSum(cell, dtype), tuple(range(1, len(inputs) + 1)), list(cell.get_parameters()))
    (total, y), gradients = step(Tensor(np.ones(1, np.float32)), *inputs)
    arrays = [to_host(each) for each in (total, y, *flat(gradients))]
    bad = sum(int((~np.isfinite(array)).sum()) for array in arrays)
    text = " and ".join(dict.fromkeys(" x ".join(map(str, shape)) for shape in shapes))
    if reduced and extreme.reduced != extreme.shapes:
        text += f", reduced on cpu from {' x '.join(map(str, extreme.shapes[0]))}"
    return Measured(f"{bad} numbers not finite: {text}" if bad else text, "failed" if bad else "ok", "finite")
