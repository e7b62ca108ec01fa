"""Implements FID's Inception v3: TensorFlow's graph inception-2015-12-05, as pytorch-fid and torch-fidelity compute it.

It is not torchvision's `inception_v3` (Szegedy et al. 2016, arXiv 1512.00567). The weights come from another training,
with 1008 classes. The averages of the pooling branches leave out the padding. The last block takes the maximum where
the last but one takes the average.

One table, STAGES, describes the network: names, shapes and cells follow from it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mindspore import Tensor, nn, ops

from vpred_train.evaluation.networks.convolution import Convolution, Padding, folded
from vpred_train.weights.formats.stored_tensor import Float32

EPS = 1e-3  # of all batch normalisations
SIDE = 299  # pixels of the input
CLASSES = 1008
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Conv:
    """Describes a convolution with batch normalisation and ReLU."""

    name: str
    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: Padding = "both"


@dataclass(frozen=True)
class Pool:
    """Describes a pooling of 3 x 3. With a stride of 1 it keeps the sides; with 2 it stays within the image."""

    kind: Literal["maximum", "average"]
    stride: int = 1


@dataclass(frozen=True)
class Fork:
    """Describes branches that read the same input; their results are concatenated along the channels."""

    branches: tuple["Chain", ...]


Chain = tuple[Conv | Pool | Fork, ...]

AVERAGE, MAXIMUM, HALVED = Pool("average"), Pool("maximum"), Pool("maximum", 2)
SQUARE, LARGE, TALL, WIDE = (3, 3), (5, 5), (7, 1), (1, 7)


def _block_a(pooled: int) -> Chain:
    tripled = (Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, SQUARE), Conv("branch3x3dbl_3", 96, SQUARE))
    return (
        Fork(
            (
                (Conv("branch1x1", 64),),
                (Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, LARGE)),
                tripled,
                (AVERAGE, Conv("branch_pool", pooled)),
            )
        ),
    )


def _block_b() -> Chain:
    last = Conv("branch3x3dbl_3", 96, SQUARE, 2, padding="none")
    return (
        Fork(
            (
                (Conv("branch3x3", 384, SQUARE, 2, padding="none"),),
                (Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, SQUARE), last),
                (HALVED,),
            )
        ),
    )


def _block_c(inner: int) -> Chain:
    single = (Conv("branch7x7_1", inner), Conv("branch7x7_2", inner, WIDE), Conv("branch7x7_3", 192, TALL))
    kernels = ((1, 1), TALL, WIDE, TALL, WIDE)
    double = tuple(
        Conv(f"branch7x7dbl_{number}", 192 if number == len(kernels) else inner, kernel)
        for number, kernel in enumerate(kernels, 1)
    )
    return (Fork(((Conv("branch1x1", 192),), single, double, (AVERAGE, Conv("branch_pool", 192)))),)


def _block_d() -> Chain:
    last = Conv("branch7x7x3_4", 192, SQUARE, 2, padding="none")
    long = (Conv("branch7x7x3_1", 192), Conv("branch7x7x3_2", 192, WIDE), Conv("branch7x7x3_3", 192, TALL), last)
    return (
        Fork(((Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, SQUARE, 2, padding="none")), long, (HALVED,))),
    )  # fmt: skip


def _block_e(pool: Pool) -> Chain:
    def crossed(name: str) -> Fork:
        return Fork(((Conv(f"{name}a", 384, (1, 3)),), (Conv(f"{name}b", 384, (3, 1)),)))

    double = (Conv("branch3x3dbl_1", 448), Conv("branch3x3dbl_2", 384, SQUARE), crossed("branch3x3dbl_3"))
    single = (Conv("branch3x3_1", 384), crossed("branch3x3_2"))
    return (Fork(((Conv("branch1x1", 320),), single, double, (pool, Conv("branch_pool", 192)))),)


# Name of a part -> its layers. The layers of a part without a name have their full names.
Stage = tuple[tuple[str, Chain], ...]
STAGES: dict[int, Stage] = {
    64: (
        (
            "",
            (
                Conv("Conv2d_1a_3x3", 32, SQUARE, 2, padding="none"),
                Conv("Conv2d_2a_3x3", 32, SQUARE, padding="none"),
                Conv("Conv2d_2b_3x3", 64, SQUARE),
                HALVED,
            ),
        ),
    ),
    192: (("", (Conv("Conv2d_3b_1x1", 80), Conv("Conv2d_4a_3x3", 192, SQUARE, padding="none"), HALVED)),),
    768: (
        ("Mixed_5b", _block_a(32)),
        ("Mixed_5c", _block_a(64)),
        ("Mixed_5d", _block_a(64)),
        ("Mixed_6a", _block_b()),
        ("Mixed_6b", _block_c(128)),
        ("Mixed_6c", _block_c(160)),
        ("Mixed_6d", _block_c(160)),
        ("Mixed_6e", _block_c(192)),
    ),
    2048: (("Mixed_7a", _block_d()), ("Mixed_7b", _block_e(AVERAGE)), ("Mixed_7c", _block_e(MAXIMUM))),
}  # taps (FID's widths of features) -> the parts up to them


def shapes(stages: Mapping[int, Stage] = STAGES) -> dict[str, Shape]:
    """Return the name and shape of each tensor, under pytorch-fid's names."""
    found: dict[str, Shape] = {}
    channels = 3
    for stage in stages.values():
        for name, chain in stage:
            channels = _add_shapes(found, chain, channels, f"{name}." if name else "")
    return found | {"fc.weight": (CLASSES, channels), "fc.bias": (CLASSES,)}


def _add_shapes(found: dict[str, Shape], chain: Chain, channels: int, prefix: str) -> int:
    """Add the tensors of a chain that reads `channels` channels; return the number that it writes."""
    for layer in chain:
        if isinstance(layer, Conv):
            name = f"{prefix}{layer.name}"
            found[f"{name}.conv.weight"] = (layer.channels, channels, *layer.kernel)
            channels = layer.channels
            found |= {f"{name}.bn.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}
        elif isinstance(layer, Fork):
            channels = sum(_add_shapes(found, branch, channels, prefix) for branch in layer.branches)
    return channels


class Concatenated(nn.Cell):
    """Concatenates the results of branches along the channels."""

    def __init__(self, branches: Sequence[nn.Cell]) -> None:
        super().__init__()
        self.branches = nn.CellList(list(branches))

    def construct(self, x: Tensor) -> Tensor:
        results = ()
        for branch in self.branches:
            results += (branch(x),)  # type: ignore[assignment]
        return ops.concat(results, 1)


class Inception(nn.Cell):
    """Maps images (B, 3, 299, 299) float32, of about [-1, 1], to the means (B, `tap`) of the channels of a layer.

    tensors: weights under pytorch-fid's names.
    tap: 64, 192, 768 or 2048, as in STAGES.
    """

    def __init__(self, tensors: Mapping[str, Float32], tap: int = 2048, stages: Mapping[int, Stage] = STAGES) -> None:
        super().__init__()
        parts: list[Any] = []
        for width, stage in stages.items():
            for name, chain in stage:
                parts += _cells(chain, tensors, f"{name}." if name else "")
            if width == tap:
                break
        self.body = nn.SequentialCell(*parts)
        self.mean = ops.ReduceMean()

    def construct(self, images: Tensor) -> Tensor:
        return self.mean(self.body(images), (2, 3))


def _cells(chain: Chain, tensors: Mapping[str, Float32], prefix: str) -> Iterator[Any]:
    for layer in chain:
        if isinstance(layer, Conv):
            name = f"{prefix}{layer.name}"
            weight, bias = folded(tensors, f"{name}.conv", f"{name}.bn", EPS)
            yield Convolution(weight, bias, layer.stride, layer.padding)
        elif isinstance(layer, Pool):
            # MindSpore's "same" leaves the padding out of the average.
            make = nn.MaxPool2d if layer.kind == "maximum" else nn.AvgPool2d
            yield make(3, layer.stride, pad_mode="same" if layer.stride == 1 else "valid")
        else:
            yield Concatenated([nn.SequentialCell(*_cells(branch, tensors, prefix)) for branch in layer.branches])
