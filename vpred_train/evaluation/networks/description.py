"""Says what a file or folder of weights holds."""

from pathlib import Path

from launcher.contract.config import ConfigError
from vpred_train.evaluation.networks.clip import open_contents_of, read_clip
from vpred_train.evaluation.networks.feature_network import sha256_of
from vpred_train.evaluation.networks.inception_weights import PUBLISHED, read_inception
from vpred_train.models.text_encoder import Activation

OF_INCEPTION = ("Conv2d_1a_3x3.conv.weight", "Conv2d_1a.conv.weight", "fc.weight")


def describe(path: Path, activation: Activation | None = None) -> str:
    """Return one line that names the network, its layout and its digest.

    activation: for a CLIP that does not declare its own.
    Raises ConfigError: when the weights are neither FID's Inception nor a CLIP with a ViT image tower, or are damaged.
    """
    contents, _ = open_contents_of(path)
    if any(name in contents.tensors for name in OF_INCEPTION):
        tensors = read_inception(path)
        digest = sha256_of([path])
        known = PUBLISHED.get(digest[:8], "unknown file")
        return f"{path}: FID's Inception v3, {len(tensors)} tensors, {known}, SHA-256 {digest}"
    if contents.container == "torchscript" and not any(name.startswith("visual.") for name in contents.tensors):
        raise ConfigError(f"{path}: is a TorchScript of neither CLIP nor FID's Inception under names that are known")
    weights = read_clip(path, activation)
    known = weights.declarations.known_as or "unknown file"
    towers = "/".join(dict.fromkeys(weights.declarations.activations))
    return (
        f"{path}: {weights.geometry.name}, {weights.layout} layout, {towers}, images of {weights.geometry.side} "
        f"pixels, features of width {weights.geometry.embedding}, {known}, SHA-256 {weights.digest}"
    )
