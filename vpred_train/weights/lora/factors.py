"""Implements low-rank adaptation (Hu et al. 2021, arXiv 2106.09685): factors, and their merge into full weights."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from launcher.contract.config import ConfigError
from vpred_train.config.model import ModelConfig
from vpred_train.config.weights import LoraConfig
from vpred_train.weights.formats.stored_tensor import Float32, LazyTensors, count_text, is_finite
from vpred_train.weights.layouts.tensor_shapes import COMPONENTS, TEXT, UNET, stability_shapes

QKV = ("q", "k", "v")  # the order of the rows in the text encoder's packed projection
PACKED = ".in_proj_weight"
ATTENTION = re.compile(r".+(\.attn[12]\.to_(q|k|v|out\.0)\.weight|\.attn\.(in_proj_weight|out_proj\.weight))")


class Target(NamedTuple):
    """Names a matrix to adapt.

    weight: its name in Stability's files.
    part: "q", "k" or "v" for these rows of a packed projection; "" for all rows.
    """

    weight: str
    part: str = ""


Matrices = dict[Target, tuple[int, int]]


@dataclass(frozen=True)
class Factors:
    """Holds the change alpha / rank * up @ down of a matrix (out, in).

    down: (rank, in) float32.
    up: (out, rank) float32.
    """

    down: Float32
    up: Float32
    alpha: float

    @property
    def rank(self) -> int:
        """Return the number of rows of `down`, an upper bound of the change's rank."""
        return len(self.down)

    @property
    def scale(self) -> float:
        """Return the factor of the product up @ down."""
        return self.alpha / self.rank

    def plain(self, rank: int) -> "Factors":
        """Return the same change with scale 1, padded to `rank`, for readers that do not know alpha.

        The result is exact when the scale is a power of two; else each element of `up` is rounded once.
        rank: at least `self.rank`.
        """
        up = self.up if self.scale == 1 else self.up * np.float32(self.scale)
        more = rank - self.rank
        return Factors(np.pad(self.down, ((0, more), (0, 0))), np.pad(up, ((0, 0), (0, more))), rank)


Parts = list[Factors | None]  # one for each of q, k and v


def linear_targets(model: ModelConfig) -> Matrices:
    """Map every linear layer of UNet and text encoder, and the parts of packed projections, to (out, in)."""
    found: Matrices = {}
    for name, shape in stability_shapes(model).items():
        if len(shape) == 2 and name.startswith((UNET, TEXT)) and "embedding" not in name:
            found[Target(name)] = (shape[0], shape[1])
            if name.endswith(PACKED):
                found |= {Target(name, part): (shape[0] // 3, shape[1]) for part in QKV}
    return found


def attention_targets(model: ModelConfig, networks: Collection[str] = ("unet", "text_encoder")) -> Matrices:
    """Map each matrix that MindONE adapts, the projections of all attention in `networks`, to (out, in)."""
    prefixes = tuple(COMPONENTS[network] for network in networks)
    return {
        target: shape
        for target, shape in linear_targets(model).items()
        if not target.part and target.weight.startswith(prefixes) and ATTENTION.fullmatch(target.weight)
    }


def factors_of(tensors: Mapping[str, Float32], config: LoraConfig) -> dict[Target, Factors]:
    """Return the factors in a training's `tensors`, where `a.lora.down` and `a.lora.up` adapt `a.weight`."""
    return {
        Target(name.removesuffix("lora.up") + "weight"): Factors(
            tensors[name.removesuffix("up") + "down"], up, config.rank * config.scale
        )
        for name, up in tensors.items()
        if name.endswith("lora.up")
    }


def merged(base: LazyTensors, factors: Mapping[Target, Factors], strength: float = 1.0) -> LazyTensors:
    """Add `strength` times the change of the factors to `base` (Stability's names); each tensor is rounded once."""
    by_weight: dict[str, dict[Target, Factors]] = {}
    for target, each in factors.items():
        by_weight.setdefault(target.weight, {})[target] = each
    makers = {name: partial(_merged, base, name, changes, strength) for name, changes in by_weight.items()}
    return LazyTensors({**base.makers, **makers})


def joined(factors: Mapping[Target, Factors]) -> dict[Target, Factors]:
    """Join q, k and v of a packed projection where they share `down`, as they do when they were split from one."""
    return _joined(factors, _shared)


def packed(factors: Mapping[Target, Factors]) -> dict[Target, Factors]:
    """Return the same change without parts. Parts that do not share `down` are stacked, so that their ranks add up."""
    return _joined(factors, lambda parts: _shared(parts) or _stacked(parts))


def separated(factors: Mapping[Target, Factors]) -> dict[Target, Factors]:
    """Return the same change with q, k and v of a packed projection split; they share `down`."""
    found: dict[Target, Factors] = {}
    for target, each in factors.items():
        if target.part or not target.weight.endswith(PACKED):
            found[target] = each
        else:
            ups = zip(QKV, np.split(each.up, 3), strict=True)
            found |= {Target(target.weight, part): Factors(each.down, up, each.alpha) for part, up in ups}
    return found


def _joined(factors: Mapping[Target, Factors], join: Callable[[Parts], Factors | None]) -> dict[Target, Factors]:
    found: dict[Target, Factors] = {}
    for target, each in factors.items():
        whole = Target(target.weight)
        if target.part and whole not in found:
            one = join([factors.get(Target(target.weight, part)) for part in QKV])
            found |= {target: each} if one is None else {whole: one}
        elif not target.part:
            found[target] = each
    return found


def _shared(parts: Parts) -> Factors | None:
    """Return q, k and v as factors of the packed projection when all are present with one `down`; else None."""
    first = parts[0]
    if first is None:
        return None
    ups = []
    for part in parts:
        if part is None or part.alpha != first.alpha or not np.array_equal(part.down, first.down):
            return None
        ups.append(part.up)
    return Factors(first.down, np.concatenate(ups), first.alpha)


def _stacked(parts: Parts) -> Factors:
    """Stack the parts: `up` is block-diagonal with one block of rows for each of q, k and v; an absent one is 0."""
    rows = next(part.up.shape[0] for part in parts if part)
    plain = [(number, part.plain(part.rank)) for number, part in enumerate(parts) if part]
    down = np.concatenate([part.down for _, part in plain])
    up = np.zeros((len(parts) * rows, len(down)), np.float32)
    at = 0
    for number, part in plain:
        up[number * rows : (number + 1) * rows, at : at + part.rank] = part.up
        at += part.rank
    return Factors(down, up, len(down))


def _merged(base: LazyTensors, name: str, changes: Mapping[Target, Factors], strength: float) -> Float32:
    weight = base[name].astype(np.float64)
    for target, each in changes.items():
        start = QKV.index(target.part) * len(each.up) if target.part else 0
        change = each.up.astype(np.float64) @ each.down.astype(np.float64)
        weight[start : start + len(each.up)] += strength * each.scale * change
    with np.errstate(over="ignore"):
        summed = weight.astype(np.float32)
    if not is_finite(summed):
        raise ConfigError(f"{name} with LoRA's change holds {count_text(summed)}; lower LoRA's scale")
    return summed
