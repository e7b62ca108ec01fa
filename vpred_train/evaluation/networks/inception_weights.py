"""Opens the weights of FID's Inception: pytorch-fid's and torch-fidelity's file, and MindONE's."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from launcher.contract.config import ConfigError
from vpred_train.evaluation.networks.feature_network import BATCH_SIZE, FeatureNetwork, Preprocess, sha256_of
from vpred_train.evaluation.networks.inception import CLASSES, SIDE, STAGES, Inception, shapes
from vpred_train.foreign import printable
from vpred_train.weights.formats.containers import open_contents
from vpred_train.weights.formats.stored_tensor import (
    FLOATS,
    Float32,
    StoredTensor,
    count_text,
    is_finite,
)

GIVE = "give pt_inception-2015-12-05-6726825d.pth of pytorch-fid"
PUBLISHED = {"6726825d": "pt_inception-2015-12-05", "9ec6dfe4": "MindONE inception_v3_fid"}  # start of the SHA-256
UNUSED = re.compile(r".*\.num_batches_tracked|AuxLogits\..*")
SHOWN = 5

# MindONE's names of the branches, for the blocks that a pattern matches.
_BRANCHES: dict[str, dict[str, str]] = {
    "Mixed_5[bcd]": {
        "branch1x1": "branch0", "branch5x5_1": "branch1.0", "branch5x5_2": "branch1.1", "branch3x3dbl_1": "branch2.0",
        "branch3x3dbl_2": "branch2.1", "branch3x3dbl_3": "branch2.2", "branch_pool": "branch_pool.1",
    },
    "Mixed_6a": {
        "branch3x3": "branch0", "branch3x3dbl_1": "branch1.0", "branch3x3dbl_2": "branch1.1",
        "branch3x3dbl_3": "branch1.2",
    },
    "Mixed_6[bcde]": {
        "branch1x1": "branch0", "branch_pool": "branch_pool.1",
        **{f"branch7x7_{number}": f"branch1.{number - 1}" for number in range(1, 4)},
        **{f"branch7x7dbl_{number}": f"branch2.{number - 1}" for number in range(1, 6)},
    },
    "Mixed_7a": {
        "branch3x3_1": "branch0.0", "branch3x3_2": "branch0.1",
        **{f"branch7x7x3_{number}": f"branch1.{number - 1}" for number in range(1, 5)},
    },
    "Mixed_7[bc]": {
        "branch1x1": "branch0", "branch3x3_1": "branch1", "branch3x3_2a": "branch1_a", "branch3x3_2b": "branch1_b",
        "branch3x3dbl_1": "branch2.0", "branch3x3dbl_2": "branch2.1", "branch3x3dbl_3a": "branch2_a",
        "branch3x3dbl_3b": "branch2_b", "branch_pool": "branch_pool.1",
    },
}  # fmt: skip
_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}


@dataclass(frozen=True)
class InceptionNetwork:
    """Holds FID's Inception.

    features: the network up to the chosen layer.
    class_weights: (1008, 2048) float32, of the last linear map.
    known_as: name of the published file; empty when the start of its digest is not known.
    """

    images: FeatureNetwork
    class_weights: Float32
    known_as: str

    def logits(self, features: Float32) -> Float32:
        """Return the logits (n, 1008) float32 of features (n, 2048), without a bias, as the Inception score takes."""
        return features @ self.class_weights.T


def open_inception(
    path: Path, preprocess: Preprocess, recipe: str, tap: int = 2048, batch_size: int = BATCH_SIZE
) -> InceptionNetwork:
    """Open FID's Inception.

    preprocess, recipe: one of the ways to resize that are published as FID, and its name. It returns (3, 299, 299)
    float32 in the range that the recipe defines, about [-1, 1].
    tap: width of the features: 64, 192, 768 or 2048.
    Raises ConfigError: when the file cannot be read or holds another network.
    """
    tensors = read_inception(path)
    try:
        digest = sha256_of([path])
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); {GIVE}") from None
    name = "inception-v3" if tap == max(STAGES) else f"inception-v3-{tap}"
    cell: Any = Inception(tensors, tap)
    images = FeatureNetwork(name, digest, recipe, tap, SIDE, preprocess, cell, batch_size)
    return InceptionNetwork(images, tensors["fc.weight"], PUBLISHED.get(digest[:8], ""))


def read_inception(path: Path) -> dict[str, Float32]:
    """Return the tensors of FID's Inception under pytorch-fid's names.

    Raises ConfigError: when the file cannot be read or holds another network.
    """
    contents = open_contents(path)
    if contents.container == "torchscript":
        raise ConfigError(f"{path}: is a TorchScript, whose tensors have names of their own; {GIVE}")
    stored = {name: tensor for name, tensor in contents.tensors.items() if not UNUSED.fullmatch(name)}
    needed = shapes()
    if "Conv2d_1a.conv.weight" in stored:
        stored = {name: stored[theirs] for name in needed if (theirs := mindone_name(name)) in stored}
    classes = stored["fc.weight"].shape[:1] if "fc.weight" in stored else ()
    if classes and classes != (CLASSES,):
        raise ConfigError(
            f"{path}: has {classes[0]} classes, so it is torchvision's or Keras' Inception, whose FID is another "
            f"number (FID's has {CLASSES}); {GIVE}"
        )
    _require_fit(path, stored, needed)
    return {name: _values(stored[name], name) for name in needed}


def mindone_name(name: str) -> str:
    """Return MindONE's name of a tensor."""
    block, _, rest = name.partition(".")
    for pattern, branches in _BRANCHES.items():
        if re.fullmatch(pattern, block):
            branch, _, rest = rest.partition(".")
            block = f"{block}.{branches[branch]}"
    block = re.sub(r"^(Conv2d_\d[ab])_\dx\d$", r"\1", block)
    kind, _, part = rest.partition(".")
    return f"{block}.bn.{_NORM[part]}" if kind == "bn" else f"{block}.{rest}"


def _require_fit(path: Path, stored: Mapping[str, StoredTensor], needed: Mapping[str, tuple[int, ...]]) -> None:
    faults = [f"missing {name}" for name in needed if name not in stored]
    faults += [f"unexpected {name}" for name in stored if name not in needed]
    faults += [
        f"{name} is {'x'.join(map(str, stored[name].shape))}, needed {'x'.join(map(str, shape))}"
        for name, shape in needed.items()
        if name in stored and stored[name].shape != shape
    ]
    faults += [
        f"{name} is {stored[name].dtype}" for name in needed if name in stored and stored[name].dtype not in FLOATS
    ]
    if faults:
        shown = "; ".join(map(printable, faults[:SHOWN])) + (" ..." if len(faults) > SHOWN else "")
        raise ConfigError(f"{path}: {len(faults)} tensors do not fit FID's Inception: {shown}; {GIVE}")


def _values(tensor: StoredTensor, name: str) -> Float32:
    values = tensor.float32()
    if not is_finite(values):
        raise ConfigError(f"{tensor.path}: {name} holds {count_text(values)}; {GIVE}")
    if name.endswith(".running_var") and np.min(values) < 0:
        raise ConfigError(f"{tensor.path}: {name} holds a negative variance; {GIVE}")
    return values
