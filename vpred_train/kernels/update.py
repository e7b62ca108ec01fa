"""Calls the trainer's compiled operations, where `loaded()`.

They update contiguous float32 arrays of one length in place.
"""

import ctypes
import functools

from vpred_train.arrays import FloatArray
from vpred_train.kernels.library import loaded

_ARRAY, _LENGTH, _NUMBER = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


def adamw_(
    weights: FloatArray,
    gradient: FloatArray,
    m: FloatArray,
    v: FloatArray,
    *,
    beta1: float,
    beta2: float,
    step_size: float,
    root_correction: float,
    epsilon: float,
    keep: float,
    scale: float,
) -> None:
    """Make one AdamW step in place.

    m and v take in scale * gradient.
    weights <- keep * weights - step_size * m / (sqrt(v) * root_correction + epsilon).
    """
    numbers = (beta1, beta2, step_size, root_correction, epsilon, keep, scale)
    function = _function("vpred_adamw", (*[_ARRAY] * 4, _LENGTH, *[_NUMBER] * len(numbers)))
    function(*(array.ctypes.data for array in (weights, gradient, m, v)), weights.size, *numbers)


def average_(average: FloatArray, values: FloatArray, share: float) -> None:
    """Update in place: average <- average + share * (values - average)."""
    function = _function("vpred_average", (_ARRAY, _ARRAY, _LENGTH, _NUMBER))
    function(average.ctypes.data, values.ctypes.data, average.size, share)


@functools.cache
def _function(name: str, arguments: tuple[type, ...]) -> "ctypes._NamedFuncPointer":
    function = getattr(ctypes.CDLL(str(loaded())), name)
    function.argtypes, function.restype = arguments, None
    return function
