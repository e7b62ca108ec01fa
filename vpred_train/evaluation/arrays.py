"""Names the array types of the metrics, and checks features before a metric reads them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from launcher.contract.config import ConfigError

Float64 = NDArray[np.float64]
Features = NDArray[np.floating[Any]]


def checked_features(features: Features, name: str, least: int = 2) -> Float64:
    """Return features (n, d) as float64.

    name: what the features describe, for the message.
    Raises ConfigError: when they are no matrix, have fewer than `least` rows, or hold a value that is not finite.
    """
    values = np.asarray(features, np.float64)
    if values.ndim != 2 or not values.shape[1]:
        raise ConfigError(f"{name}: features of shape {values.shape}; a matrix (images, width) is needed")
    if len(values) < least:
        raise ConfigError(f"{name}: {len(values)} image(s); at least {least} are needed")
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
        raise ConfigError(f"{name}: the features of image {row} (counted from 0) are not finite")
    return values


def checked_pair(x: Features, y: Features, least: int = 2) -> tuple[Float64, Float64]:
    """Return features (n, d), (m, d) as float64. Raises ConfigError as checked_features does, and for two widths."""
    x, y = checked_features(x, "generated", least), checked_features(y, "real", least)
    if x.shape[1] != y.shape[1]:
        raise ConfigError(f"features of widths {x.shape[1]} and {y.shape[1]}; one network must make both")
    return x, y


def normalised(values: Float64, name: str) -> Float64:
    """Return rows (n, d) divided by their norms. Raises ConfigError for a row of zeros."""
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    if not norms.all():
        row = int(np.flatnonzero(norms[:, 0] == 0)[0])
        raise ConfigError(f"{name}: the embedding of row {row} (counted from 0) is zero; it has no direction")
    return values / norms
