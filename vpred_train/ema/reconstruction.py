"""Makes an average of any width from snapshots of a few widths (Karras et al. 2024, arXiv 2312.02696, section 3.2).

A power average at T samples is the integral of profile(t) weights(t), where profile(t) is (gamma + 1) / T (t / T)^gamma
up to T and 0 after. The average is linear in the profile. So the combination of snapshots whose profile is nearest to
the wanted one, by least squares, approximates the wanted average.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vpred_train.ema.profiles import gamma_of
from vpred_train.ema.snapshots import Snapshot
from vpred_train.weights.formats.stored_tensor import Float32, LazyTensors, StoredTensor

Float64 = NDArray[np.float64]


class Profile(NamedTuple):
    """Describes a power average of width `sigma_rel` at `samples_seen`."""

    sigma_rel: float
    samples_seen: int


def inner_products(left: Sequence[Profile], right: Sequence[Profile]) -> Float64:
    """Return the integrals of the products of the profiles, (len(left), len(right)), in closed form.

    For exponents a up to S and b up to T, S <= T: (a + 1) (b + 1) / (a + b + 1) (S / T)^b / T.
    """
    (a, s), (b, t) = (
        np.array([(gamma_of(each.sigma_rel), each.samples_seen) for each in side]).T for side in (left, right)
    )
    a, s = a[:, None], s[:, None]
    fall = (np.minimum(s, t) / np.maximum(s, t)) ** np.where(s <= t, b, a)
    products: Float64 = (a + 1) * (b + 1) / (a + b + 1) * fall / np.maximum(s, t)
    return products


def solve(tracked: Sequence[Profile], wanted: Profile) -> tuple[Float64, float]:
    """Return the coefficients of the tracked averages, which sum to 1, and the relative error of the combined profile.

    The error is the L2 norm of the combined minus the wanted profile, divided by that of the wanted one (ibid.,
    appendix C).
    """
    gram, target = inner_products(tracked, tracked), inner_products(tracked, [wanted])[:, 0]
    norms = np.sqrt(np.diag(gram))  # scales profiles to unit norm: late ones are much lower and wider than early ones
    coefficients = np.linalg.solve(gram / np.outer(norms, norms), target / norms) / norms
    coefficients /= coefficients.sum()
    energy = inner_products([wanted], [wanted])[0, 0]
    squared = energy - 2 * coefficients @ target + coefficients @ gram @ coefficients
    return coefficients, float(np.sqrt(max(squared, 0.0) / energy))


def combine(snapshots: Sequence[Snapshot], coefficients: Float64) -> LazyTensors:
    """Combine the snapshots' tensors, one at a time, summed in float64."""
    stored = [snapshot.stored for snapshot in snapshots]
    return LazyTensors({name: partial(_combined, stored, name, coefficients) for name in stored[0]})


def _combined(stored: Sequence[Mapping[str, StoredTensor]], name: str, coefficients: Float64) -> Float32:
    total = np.zeros(stored[0][name].shape)
    for tensors, coefficient in zip(stored, coefficients, strict=True):
        total += coefficient * tensors[name].float32()
    return total.astype(np.float32)
