"""Copies between device and host. All copies to the host are made here, so that a test can count their bytes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass
class Copied:
    """Counts the bytes that this process has copied, in both directions."""

    to_host_bytes: int = 0
    to_device_bytes: int = 0


copied = Copied()


def to_host(tensor: Any) -> NDArray[Any]:
    """Wait for a tensor's values, and return them.

    On a device that computes in host memory, the array shares the tensor's memory. Elsewhere the tensor may fill the
    array again at its next copy.
    """
    values: NDArray[Any] = tensor.asnumpy()
    copied.to_host_bytes += values.nbytes
    return values


def to_device(values: NDArray[Any]) -> Any:
    """Return a tensor of these values. On a device that computes in host memory, it shares the memory of `values`."""
    from mindspore import Tensor  # the environment of MindSpore's import is set first

    copied.to_device_bytes += values.nbytes
    return Tensor.from_numpy(np.require(values, requirements="C"))
