"""Reads and writes the statistics of a set's features: safetensors of ours, and the npz files of published FIDs."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from launcher.contract.config import ConfigError
from launcher.contract.files import write_atomic
from vpred_train.evaluation.frechet import Moments
from vpred_train.foreign import require_regular

KIND = "vpred feature statistics"


@dataclass(frozen=True)
class Origin:
    """Names the network that made features, the recipe of its input, and the digest of its weights."""

    network: str
    recipe: str
    weights_digest: str


@dataclass(frozen=True)
class Statistics:
    """Moments with their origin; None where the file does not say it, as an npz does not."""

    moments: Moments
    origin: Origin | None


def write_statistics(path: Path, moments: Moments, origin: Origin) -> None:
    """Write mu (d,), sigma (d, d) in float64 and their origin to a safetensors file, all of it or nothing."""
    metadata = {"kind": KIND, "n": str(moments.n or 0), **vars(origin)}
    write_atomic(path, save({"mu": moments.mean, "sigma": moments.covariance}, metadata))


def read_statistics(path: Path, expected: Origin, width: int) -> Statistics:
    """Return the statistics of a .safetensors file or of an .npz file with the arrays mu and sigma.

    expected, width: of the features that the statistics shall be compared with.
    Raises ConfigError: when the file is missing, damaged or of another kind, or does not fit what is expected.
    """
    try:
        require_regular(path)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    if path.suffix == ".npz":
        arrays, origin, n = _read_npz(path), None, 0
    elif path.suffix == ".safetensors":
        arrays, origin, n = _read_safetensors(path)
    else:
        raise ConfigError(f"{path}: statistics end in .safetensors or .npz")
    for name in ("mu", "sigma"):
        if name not in arrays:
            raise ConfigError(f"{path}: no array {name}; it has {', '.join(sorted(arrays)) or 'none'}")
        if not np.issubdtype(arrays[name].dtype, np.floating):
            raise ConfigError(f"{path}: {name} is of type {arrays[name].dtype}, not of a floating-point type")
    try:
        moments = Moments(arrays["mu"].astype(np.float64), arrays["sigma"].astype(np.float64), n or None)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if moments.mean.size != width:
        raise ConfigError(f"{path}: statistics of width {moments.mean.size}; the features have {width}")
    for name, value in vars(expected).items():
        if origin and getattr(origin, name) != value:
            raise ConfigError(f"{path}: made with {name} {getattr(origin, name)!r}, the images with {value!r}")
    return Statistics(moments, origin)


def _read_npz(path: Path) -> dict[str, NDArray[np.generic]]:
    try:
        loaded = np.load(path)  # refuses pickles by default
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise ConfigError(f"{path}: one array without a name; an npz with mu and sigma is needed")
        with loaded as file:
            return {name: file[name] for name in ("mu", "sigma") if name in file.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path}: no readable npz ({error})", "copy it again") from None


def _read_safetensors(path: Path) -> tuple[dict[str, NDArray[np.generic]], Origin, int]:
    try:
        with safe_open(path, framework="np") as file:
            texts = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in ("mu", "sigma") if name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ConfigError(f"{path}: no readable safetensors file ({error})", "copy it again") from None
    names = ("network", "recipe", "weights_digest")
    if texts.get("kind") != KIND or not texts.get("n", "").isdecimal() or not texts.keys() >= set(names):
        raise ConfigError(f"{path}: a safetensors file, but its metadata is not that of statistics")
    return arrays, Origin(*(texts[name] for name in names)), int(texts["n"])
