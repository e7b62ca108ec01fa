"""Measures how fast the machine computes, copies and starts kernels. A rank much slower than the others is found."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import mindspore
import numpy as np
from mindspore import Tensor, nn, ops

from launcher.contract.accelerators import ComputeDtype
from vpred_train.doctor.check import Item, Measured, left_out
from vpred_train.doctor.station import Station
from vpred_train.host_copies import to_device, to_host
from vpred_train.models.layers import COMPUTE_DTYPES, Linear

# A rank is slow below this share of the other ranks' median. NPUs of one model are alike. Processors share their cores
# with other programs, so that only gross differences mean something there.
LEAST_SHARE = {"matrix": 0.9, "copy": 0.7, "launch": 0.7}
LEAST_SHARE_ON_CPU = 0.5
MATRIX_SIDE, MATRIX_SIDE_ON_CPU = 4096, 512
PRODUCTS = 4  # in one graph, so that the time is the device's and not the host's
COPY_BYTES, COPY_BYTES_ON_CPU = 256 << 20, 32 << 20
KERNELS = 250
# Demands on an NPU, estimated: 60 % of 313 TFLOP/s, the least peak of an Atlas A2 in half precision; a fifth of the
# 25 GB/s of PCIe 4.0 x 16.
LEAST_TFLOPS = {"bfloat16": 188.0, "float16": 188.0}
LEAST_COPY_GBS = 5.0
MOST_LAUNCH_US = 10.0
LEAST_S, MOST_RUNS = 0.6, 100


@dataclass(frozen=True)
class Speed:
    """Is one thing whose speed is measured.

    make: returns a function that does it once and waits for the end
    amount: in `unit` x seconds
    least: the demand on an NPU, 0 for none
    kind: key of LEAST_SHARE
    """

    make: Callable[[Station], Callable[[], Any]]
    amount: Callable[[Station], float]
    unit: str
    least: float
    kind: str
    remedy: str


class Chain(nn.Cell):
    """Multiplies x (n, n) by one matrix PRODUCTS times, and returns the first row in float32."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.linear = Linear(np.random.default_rng(0), side, side, bias=False)

    def construct(self, x: Tensor) -> Tensor:
        for _ in range(PRODUCTS):
            x = self.linear(x)
        return x[0].astype(mindspore.float32)


class Touched(nn.Cell):
    """Reads all of x (n,) and returns its sum."""

    def construct(self, x: Tensor) -> Tensor:
        return x.sum()


class Shifted(nn.Cell):
    """Computes x + 1, a new array as large as x."""

    def construct(self, x: Tensor) -> Tensor:
        return x + 1.0


class Small(nn.Cell):
    """Runs KERNELS small kernels, each of which needs the result of the one before."""

    def construct(self, x: Tensor) -> Tensor:
        for _ in range(KERNELS):
            x = ops.tanh(x)
        return x


def matrix(station: Station, dtype: ComputeDtype) -> Callable[[], Any]:
    """Return a chain of matrix products."""
    side = side_of(station)
    chain = Chain(side)
    values = np.random.default_rng(0).standard_normal((side, side)).astype(np.float32)
    x = Tensor(values).astype(COMPUTE_DTYPES[dtype])
    return lambda: to_host(chain(x))


def side_of(station: Station) -> int:
    """Return the side of the matrices."""
    return MATRIX_SIDE_ON_CPU if station.on_cpu else MATRIX_SIDE


def up(station: Station) -> Callable[[], Any]:
    """Return a copy from the host to the device. The device reads it once; on cpu that is all there is."""
    values = np.zeros(copy_bytes(station) // 4, np.float32)
    touched = Touched()
    return lambda: to_host(touched(to_device(values)))


def copy_bytes(station: Station) -> int:
    """Return the size of a copy."""
    return COPY_BYTES_ON_CPU if station.on_cpu else COPY_BYTES


def launches(station: Station) -> Callable[[], Any]:
    """Return a graph of many small kernels."""
    small, x = Small(), Tensor(np.ones(16, np.float32))
    return lambda: to_host(small(x))


_MATRIX = "npu-smi info: frequency, temperature, another program on this device or host"
_COPY = "bind the rank to the cores beside its device: launcher.binding"
_LAUNCH = "bind ranks to cores: launcher.binding; end other programs on this host"

SPEEDS: dict[str, Speed] = {
    **{
        f"matrix products, {dtype}": Speed(
            partial(matrix, dtype=dtype),
            lambda station: 2e-12 * PRODUCTS * side_of(station) ** 3,
            "TFLOP/s",
            LEAST_TFLOPS.get(dtype, 0.0),
            "matrix",
            _MATRIX,
        )
        for dtype in ("float32", "float16", "bfloat16")
    },
    "host to device": Speed(up, lambda station: copy_bytes(station) / 1e9, "GB/s", LEAST_COPY_GBS, "copy", _COPY),
    "kernels started": Speed(
        launches, lambda station: KERNELS / 1e6, "million/s", 1 / MOST_LAUNCH_US, "launch", _LAUNCH
    ),
}


def items(station: Station) -> Sequence[Item]:
    """List the speeds. Those of dtypes in which the accelerator does not compute are absent."""
    absent = {f"matrix products, {dtype}" for dtype in COMPUTE_DTYPES} - {
        f"matrix products, {dtype}" for dtype in station.accelerator.compute_dtypes
    }
    found = [
        Item(name, partial(measure, station, speed), speed.remedy)
        for name, speed in SPEEDS.items()
        if name not in absent
    ]
    return [*found, Item("device to host", partial(down, station), _COPY)]


def measure(station: Station, speed: Speed) -> Measured:
    """Measure one speed."""
    work = speed.make(station)
    work()  # compiles
    return judged(station, speed.amount(station) / shortest_s(work), speed.unit, speed.least, speed.kind)


def judged(station: Station, rate: float, unit: str, least: float, kind: str) -> Measured:
    """Return a rate with the demand on it."""
    demanded = least > 0 and not station.on_cpu
    return Measured(
        f"{rate:.3g} {unit}",
        "failed" if demanded and rate < least else "ok",
        f">= {least:g} {unit}" if demanded else "",
        rate,
        unit,
        LEAST_SHARE_ON_CPU if station.on_cpu else LEAST_SHARE[kind],
    )


def down(station: Station) -> Measured:
    """Measure a copy from the device to the host. On cpu both are the same memory."""
    if station.on_cpu:
        return left_out("on cpu the host is the device")
    shifted, x = Shifted(), Tensor(np.zeros(copy_bytes(station) // 4, np.float32))
    seconds = []
    for _ in range(5):
        result = shifted(x)
        to_host(result[:1])  # waits for the kernel
        started_s = time.perf_counter()
        to_host(result)
        seconds.append(time.perf_counter() - started_s)
    return judged(station, copy_bytes(station) / 1e9 / min(seconds), "GB/s", LEAST_COPY_GBS, "copy")


def shortest_s(work: Callable[[], Any]) -> float:
    """Return the shortest of several runs, which other programs have disturbed least, s."""
    best_s, began_s = math.inf, time.perf_counter()
    for _ in range(MOST_RUNS):
        started_s = time.perf_counter()
        work()
        best_s = min(best_s, time.perf_counter() - started_s)
        if time.perf_counter() - began_s > LEAST_S:
            break
    return best_s
