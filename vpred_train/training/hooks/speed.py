"""Measures a rank's training speed in images and FLOPs, relative to the measured speed of its matrix products."""

import logging
import time
from dataclasses import dataclass
from statistics import median

import numpy as np
from mindspore import Tensor, nn
from mindspore import dtype as mstype

from launcher.contract.accelerators import ComputeDtype
from vpred_train.config.train import TrainConfig
from vpred_train.distributed.collectives import Collective
from vpred_train.estimates.flops import flops_per_image
from vpred_train.host_copies import to_host
from vpred_train.models.layers import COMPUTE_DTYPES, Linear

logger = logging.getLogger(__name__)

CEILING_PRODUCTS = 2  # in one graph
CEILING_RUNS = 5


@dataclass(frozen=True)
class Rates:
    """Holds the speed of one rank over one step.

    mfu_ratio: model FLOPs utilisation (Chowdhery et al. 2022, arXiv 2204.02311, appendix B), with the measured speed of
        large matrix products in the compute dtype in place of the device's peak
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
    """Multiplies x (n, n) float32 by one matrix CEILING_PRODUCTS times in `dtype`, and returns the sum, float32."""

    def __init__(self, side: int, dtype: ComputeDtype) -> None:
        super().__init__()
        self.linear = Linear(np.random.default_rng(0), side, side, bias=False)
        self.dtype = COMPUTE_DTYPES[dtype]

    def construct(self, x: Tensor) -> Tensor:
        x = x.astype(self.dtype)
        for _ in range(CEILING_PRODUCTS):
            x = self.linear(x)
        return x.astype(mstype.float32).sum()


def measure_speed(config: TrainConfig, collective: Collective, ceiling_side: int) -> Speed:
    """Count a step's operations, and time matrix products on all ranks at once, since ranks may share cores.

    ceiling_side: side of the matrices
    """
    by_network = flops_per_image(config)
    images = config.global_batch / collective.world_size
    flops = sum(each.total for each in by_network.values())
    speed = Speed(images, images * flops, matmul_flops_per_second(collective, ceiling_side, config.precision.dtype))
    counted = ", ".join(f"{name} {each.forward:.3g} + {each.backward:.3g}" for name, each in by_network.items())
    logger.info(
        "FLOPs of an image, forward + backward: %s; matrix products in %s: %.3g FLOP/s",
        counted,
        config.precision.dtype,
        speed.matmul_flops_per_second,
    )
    return speed


def matmul_flops_per_second(collective: Collective, side: int, dtype: ComputeDtype) -> float:
    """Return the FLOP/s of this rank's linear layers of side x side in `dtype`, the median of CEILING_RUNS runs.

    The other ranks run the same at the same time.
    """
    products, x = Products(side, dtype), Tensor(np.ones((side, side), np.float32))
    to_host(products(x))  # compiles
    collective.barrier()
    seconds = []
    for _ in range(CEILING_RUNS):
        started = time.perf_counter()
        to_host(products(x))
        seconds.append(time.perf_counter() - started)
    return 2 * CEILING_PRODUCTS * side**3 / median(seconds)
