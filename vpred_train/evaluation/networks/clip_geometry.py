"""Derives the structure of a CLIP from the shapes of its tensors, and checks that every tensor fits it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from pathlib import Path

from launcher.contract.config import ConfigError
from vpred_train.evaluation.networks.clip_layouts import GIVE, UNUSED, Part, Shape
from vpred_train.foreign import printable

VOCABULARY, CONTEXT = 49408, 77
HEAD_CHANNELS = 64
HEADS = {1280: 16, 1408: 16, 1664: 16}  # image towers of open_clip's H, g and bigG, whose heads are wider
NAMES = {
    (768, 12, 32): "B-32", (768, 12, 16): "B-16", (1024, 24, 14): "L-14", (1280, 32, 14): "H-14",
    (1408, 40, 14): "g-14", (1664, 48, 14): "bigG-14",
}  # fmt: skip
SHOWN = 5
MOST_LAYERS = 128


@dataclass(frozen=True)
class Tower:
    """Describes a stack of transformer blocks.

    inner: width between the two layers of an MLP.
    """

    width: int
    layers: int
    heads: int
    inner: int

    def shapes(self, prefix: str) -> dict[str, Shape]:
        """Return the name and shape of each tensor of the blocks."""
        width = self.width
        found: dict[str, Shape] = {}
        for number in range(self.layers):
            block = f"{prefix}transformer.resblocks.{number}."
            found |= {
                f"{block}attn.in_proj_weight": (3 * width, width),
                f"{block}attn.in_proj_bias": (3 * width,),
                f"{block}attn.out_proj.weight": (width, width),
                f"{block}attn.out_proj.bias": (width,),
                f"{block}mlp.c_fc.weight": (self.inner, width),
                f"{block}mlp.c_fc.bias": (self.inner,),
                f"{block}mlp.c_proj.weight": (width, self.inner),
                f"{block}mlp.c_proj.bias": (width,),
            }
            found |= {f"{block}ln_{each}.{part}": (width,) for each in (1, 2) for part in ("weight", "bias")}
        return found


@dataclass(frozen=True)
class Geometry:
    """Describes a CLIP.

    patch: pixels on a side of a patch.
    grid: patches on a side of the image.
    embedding: width of the features that image and text share.
    """

    image: Tower
    text: Tower
    patch: int
    grid: int
    embedding: int

    @property
    def side(self) -> int:
        """Return the pixels on a side of the image."""
        return self.patch * self.grid

    @property
    def name(self) -> str:
        """Return the model's usual name, or its sizes."""
        image = self.image
        size = NAMES.get((image.width, image.layers, self.patch), f"{image.width}x{image.layers}-{self.patch}")
        return f"clip-vit-{size}" + (f"-{self.side}" if self.side != 224 else "")

    def shapes(self) -> dict[str, Shape]:
        """Return the name and shape of each tensor, under OpenAI's names."""
        image, text = self.image.width, self.text.width
        found: dict[str, Shape] = {
            "visual.class_embedding": (image,),
            "visual.positional_embedding": (1 + self.grid**2, image),
            "visual.conv1.weight": (image, 3, self.patch, self.patch),
            "visual.proj": (image, self.embedding),
            "token_embedding.weight": (VOCABULARY, text),
            "positional_embedding": (CONTEXT, text),
            "text_projection": (text, self.embedding),
            "logit_scale": (),
        }
        norms = {"visual.ln_pre": image, "visual.ln_post": image, "ln_final": text}
        found |= {f"{norm}.{part}": (width,) for norm, width in norms.items() for part in ("weight", "bias")}
        return found | self.image.shapes("visual.") | self.text.shapes("")


def geometry_of(path: Path, parts: Mapping[str, Part], image_heads: int | None, text_heads: int | None) -> Geometry:
    """Return the structure of the tensors `parts`, which are under OpenAI's names.

    path: for the error message.
    image_heads, text_heads: as a configuration declares them; None derives them from the width.
    Raises ConfigError: when tensors are missing, unexpected or of a wrong shape, or the towers do not fit together.
    """
    shapes = {name: part.shape for name, part in parts.items()}

    def axis(name: str, number: int, axes: int) -> int:
        if name not in shapes:
            raise ConfigError(f"{path}: {name} is missing; {GIVE} and a text tower")
        if len(shapes[name]) != axes or 0 in shapes[name]:
            raise ConfigError(f"{path}: {name} is {_text(shapes[name])}; {GIVE} of OpenAI's structure")
        return shapes[name][number]

    def tower(prefix: str, width: int, heads: int) -> Tower:
        pattern = re.compile(re.escape(prefix) + r"transformer\.resblocks\.(\d{1,3})\.")
        layers = 1 + max((int(found[1]) for found in map(pattern.match, shapes) if found), default=-1)
        if layers > MOST_LAYERS:
            raise ConfigError(f"{path}: {layers} blocks in a tower, at most {MOST_LAYERS} are known; {GIVE}")
        inner = axis(f"{prefix}transformer.resblocks.0.mlp.c_fc.weight", 0, 2)
        if heads < 1 or width % heads:
            raise ConfigError(f"{path}: a tower of width {width} cannot have {heads} heads; {GIVE}")
        return Tower(width, layers, heads, inner)

    image_width, text_width = axis("visual.conv1.weight", 0, 4), axis("token_embedding.weight", 1, 2)
    embedding, text_embedding = axis("visual.proj", 1, 2), axis("text_projection", 1, 2)
    if embedding != text_embedding:
        raise ConfigError(
            f"{path}: image features have width {embedding}, text features {text_embedding}; "
            "give both towers of one CLIP model"
        )
    if axis("token_embedding.weight", 0, 2) != VOCABULARY or axis("positional_embedding", 0, 2) != CONTEXT:
        found = f"{shapes['token_embedding.weight'][0]} tokens, {shapes['positional_embedding'][0]} places"
        raise ConfigError(f"{path}: has another vocabulary than CLIP ({found}; CLIP: {VOCABULARY}, {CONTEXT}); {GIVE}")
    geometry = Geometry(
        tower("visual.", image_width, image_heads or HEADS.get(image_width, image_width // HEAD_CHANNELS)),
        tower("", text_width, text_heads or text_width // HEAD_CHANNELS),
        axis("visual.conv1.weight", 3, 4),
        isqrt(axis("visual.positional_embedding", 0, 2) - 1),
        embedding,
    )
    _require_fit(path, shapes, geometry.shapes())
    return geometry


def _require_fit(path: Path, found: Mapping[str, Shape], needed: Mapping[str, Shape]) -> None:
    """Raise ConfigError when names or shapes differ; the message names the first few."""
    faults = [f"missing {name}" for name in needed if name not in found]
    faults += [f"unexpected {name}" for name in found if name not in needed and not UNUSED.fullmatch(name)]
    faults += [
        f"{name} is {_text(found[name])}, needed {_text(shape)}"
        for name, shape in needed.items()
        if name in found and found[name] != shape and {found[name], shape} != {(), (1,)}
    ]
    if faults:
        shown = "; ".join(map(printable, faults[:SHOWN])) + (" ..." if len(faults) > SHOWN else "")
        raise ConfigError(f"{path}: {len(faults)} tensors do not fit a CLIP ViT: {shown}; {GIVE} of OpenAI's structure")


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "a scalar"
