"""Keeps features of images in files, so that a set is computed once for all models and an evaluation can go on.

A folder holds the features of one origin: network, recipe and digest of the weights. Each file in it is a part, written
aside and renamed, with a digest of its contents in its name. Processes may write at the same time.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from launcher.contract.files import write_atomic
from vpred_train.evaluation.statistics_file import Origin

DIGEST_BYTES = 16
CHUNK_BYTES = 1 << 20
Float32 = NDArray[np.float32]


def digest_of_file(path: Path) -> str:
    """Return the xxh3-128 digest of a file's bytes, hexadecimal."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


class FeaturesCache:
    """The features of one origin, by the digest of the image's file."""

    def __init__(self, cache: Path, origin: Origin, width: int) -> None:
        """cache: the folder of all origins. width: numbers of a row."""
        self.origin, self.width = origin, width
        key = "\0".join((origin.network, origin.recipe, origin.weights_digest, str(width)))
        self.folder = cache / xxhash.xxh3_64_hexdigest(key.encode())

    def read(self) -> dict[str, Float32]:
        """Return the features (width,) of each digest. A damaged part is removed: its features are computed again."""
        found: dict[str, Float32] = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            part = self._part(path)
            if part is None:
                path.unlink(missing_ok=True)
            else:
                found |= part
        return found

    def add(self, features: Mapping[str, Float32]) -> None:
        """Write a part with the features (width,) of each digest, all of it or nothing."""
        if not features:
            return
        keys = sorted(features)
        digests = np.frombuffer(bytes.fromhex("".join(keys)), np.uint8).reshape(len(keys), DIGEST_BYTES)
        rows = np.stack([features[key] for key in keys]).astype(np.float32)
        if rows.shape != (len(keys), self.width):
            raise ValueError(f"features of shape {rows.shape[1:]}, not ({self.width},)")
        contents = _contents_digest(digests, rows)
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {"digests": digests, "features": rows}
        write_atomic(self.folder / f"{contents}.safetensors", save(tensors, vars(self.origin)))

    def _part(self, path: Path) -> dict[str, Float32] | None:
        """Return the rows of a part, or None when it is damaged or of another origin."""
        try:
            with safe_open(path, framework="np") as file:
                if file.metadata() != vars(self.origin) or set(file.keys()) != {"digests", "features"}:
                    return None
                digests, rows = file.get_tensor("digests"), file.get_tensor("features")
        except (SafetensorError, FileNotFoundError):
            return None
        n = digests.size // DIGEST_BYTES
        if (digests.shape, rows.shape) != ((n, DIGEST_BYTES), (n, self.width)) or (digests.dtype, rows.dtype) != (
            np.uint8,
            np.float32,
        ):
            return None
        if _contents_digest(digests, rows) != path.stem:
            return None
        return {bytes(digest).hex(): row for digest, row in zip(digests, rows, strict=True)}


def _contents_digest(digests: NDArray[np.uint8], rows: Float32) -> str:
    return xxhash.xxh3_128_hexdigest(digests.tobytes() + rows.tobytes())
