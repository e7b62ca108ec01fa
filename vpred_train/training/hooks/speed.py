"""Measures a rank's training speed in images and FLOPs, relative to the measured speed of its matrix products."""

import logging
import time
from dataclasses import dataclass
from statistics import median

import numpy as np
from mindspore import Tensor, nn

from vpred_train.config.train import TrainConfig
from vpred_train.distributed.collectives import Collective
from vpred_train.estimates.flops import flops_per_image
from vpred_train.host_copies import to_host
from vpred_train.models.layers import Linear

logger = logging.getLogger(__name__)

CEILING_SIDE = 1024
CEILING_PRODUCTS = 2  # in one graph
CEILING_RUNS = 5


@dataclass(frozen=True)
class Rates:
    """Holds the speed of one rank over one step.

    mfu_ratio: model FLOPs utilisation (Chowdhery et al. 2022, arXiv 2204.02311, appendix B), with the measured speed of
        a float32 matrix product in place of the device's peak
    """

    images_per_second_per_device: float
    model_flops_per_second: float
    mfu_ratio: float


@dataclass(frozen=True)
class Speed:
    """Holds a rank's work in each step, and the floating-point operations per second of its matrix products."""

    images_per_step: float
    flops_per_step: float
    matmul_flops_per_second: float

    def rates(self, step_seconds: float) -> Rates:
        """Return the rates of a step.

        step_seconds: duration of the step, including the waits for data and other ranks
        """
        flops_per_second = self.flops_per_step / step_seconds
        return Rates(
            self.images_per_step / step_seconds, flops_per_second, flops_per_second / self.matmul_flops_per_second
        )


class Products(nn.Cell):
    """Multiplies x (n, n) float32 by one matrix CEILING_PRODUCTS times, and returns the first row."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = Linear(np.random.default_rng(0), CEILING_SIDE, CEILING_SIDE, bias=False)

    def construct(self, x: Tensor) -> Tensor:
        for _ in range(CEILING_PRODUCTS):
            x = self.linear(x)
        return x[0]


def measure_speed(config: TrainConfig, collective: Collective) -> Speed:
    """Count a step's operations, and time matrix products on all ranks at once, since ranks may share cores."""
    by_network = flops_per_image(config)
    images = config.global_batch / collective.world_size
    flops = sum(each.total for each in by_network.values())
    speed = Speed(images, images * flops, matmul_flops_per_second(collective))
    counted = ", ".join(f"{name} {each.forward:.3g} + {each.backward:.3g}" for name, each in by_network.items())
    logger.info(
        "FLOPs of an image, forward + backward: %s; matrix products: %.3g FLOP/s",
        counted,
        speed.matmul_flops_per_second,
    )
    return speed


def matmul_flops_per_second(collective: Collective) -> float:
    """Return the float32 FLOP/s of this rank's linear layers, the median of CEILING_RUNS runs.

    The other ranks run the same at the same time.
    """
    products, x = Products(), Tensor(np.ones((CEILING_SIDE, CEILING_SIDE), np.float32))
    to_host(products(x))  # compiles
    collective.barrier()
    seconds = []
    for _ in range(CEILING_RUNS):
        started = time.perf_counter()
        to_host(products(x))
        seconds.append(time.perf_counter() - started)
    return 2 * CEILING_PRODUCTS * CEILING_SIDE**3 / median(seconds)
