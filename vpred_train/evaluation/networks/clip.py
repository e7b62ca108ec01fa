"""Implements CLIP's image and text towers (Radford et al. 2021, arXiv 2103.00020) and opens their published weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from launcher.contract.config import ConfigError
from vpred_train.config.model import TextEncoderConfig
from vpred_train.evaluation.networks.clip_declarations import Declarations, declared, with_activation
from vpred_train.evaluation.networks.clip_geometry import CONTEXT, Geometry, geometry_of
from vpred_train.evaluation.networks.clip_layouts import GIVE, Part, openai_parts
from vpred_train.evaluation.networks.feature_network import BATCH_SIZE, FeatureNetwork, in_batches, sha256_of
from vpred_train.evaluation.networks.image_recipe import ImageRecipe
from vpred_train.foreign import printable
from vpred_train.models import indexing
from vpred_train.models.layers import LayerNorm
from vpred_train.models.text_encoder import Activation, TextEncoder, Transformer
from vpred_train.text.tokenizer import Tokenizer
from vpred_train.weights.formats.containers import open_contents
from vpred_train.weights.formats.safetensors_file import read_sharded
from vpred_train.weights.formats.stored_tensor import Contents, Float32

FILES = (
    "model.safetensors", "model.safetensors.index.json", "open_clip_model.safetensors", "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
)  # fmt: skip


def _empty(*shape: int) -> Tensor:
    return Tensor(np.zeros(shape, np.float32))


class Patches(nn.Cell):
    """Maps each patch of (B, 3, H, W) to a token: (B, patches, width). A convolution whose stride is its kernel."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.weight = Parameter(_empty(width, 3, patch, patch), name="weight", requires_grad=False)
        self.product = ops.MatMul(transpose_b=True)

    def construct(self, images: Tensor) -> Tensor:
        batch, channels, height, width = images.shape
        patch, rows, columns = self.patch, height // self.patch, width // self.patch
        x = images.reshape(batch, channels, rows, patch, columns, patch).transpose(0, 2, 4, 1, 3, 5)
        y = self.product(x.reshape(batch * rows * columns, -1), self.weight.reshape(self.weight.shape[0], -1))
        return y.reshape(batch, rows * columns, -1)


class ImageTower(nn.Cell):
    """Maps images (B, 3, side, side) float32 to features (B, embedding) float32, not normalised."""

    def __init__(self, geometry: Geometry, activation: Activation, rng: np.random.Generator) -> None:
        super().__init__()
        tower = geometry.image
        self.conv1 = Patches(tower.width, geometry.patch)
        self.class_embedding = Parameter(_empty(tower.width), name="class_embedding")
        positions = _empty(1 + geometry.grid**2, tower.width)
        self.positional_embedding = Parameter(positions, name="positional_embedding")
        self.ln_pre = LayerNorm(tower.width)
        self.transformer = Transformer(rng, tower.width, tower.layers, tower.heads, tower.inner, activation)
        self.ln_post = LayerNorm(tower.width)
        self.proj = Parameter(_empty(tower.width, geometry.embedding), name="proj")
        self.product = ops.MatMul()

    def construct(self, images: Tensor) -> Tensor:
        patches = self.conv1(images)
        first = ops.tile(self.class_embedding.reshape(1, 1, -1), (patches.shape[0], 1, 1))
        x = ops.concat((first, patches), 1) + self.positional_embedding
        x = self.transformer(self.ln_pre(x))
        return self.product(self.ln_post(x[:, 0]), self.proj)


class TextTower(nn.Cell):
    """Maps token numbers (B, 77) int32 and the place of each caption's end token (B,) int32 to features (B, embedding).

    The features are float32 and not normalised.
    """

    def __init__(self, geometry: Geometry, activation: Activation, rng: np.random.Generator) -> None:
        super().__init__()
        tower = geometry.text
        config = TextEncoderConfig(width=tower.width, heads=tower.heads, layers=tower.layers, context_length=CONTEXT)
        self.encoder = TextEncoder(config, rng, inner=tower.inner, activation=activation)
        self.text_projection = Parameter(_empty(tower.width, geometry.embedding), name="text_projection")
        self.product = ops.MatMul()
        self.rows = indexing.chosen().rows

    def construct(self, tokens: Tensor, ends: Tensor) -> Tensor:
        x = self.encoder(tokens)
        batch, length, width = x.shape
        starts = Tensor(np.arange(0, batch * length, length, dtype=np.int32))
        return self.product(self.rows(starts + ends, x.reshape(batch * length, width)), self.text_projection)


@dataclass(frozen=True)
class ClipNetwork:
    """Holds a CLIP: its image tower, and captions to features.

    images: the image tower; its features are not normalised.
    logit_scale: factor of the cosine in CLIP's training and in PickScore.
    activation: of the image tower and of the text tower.
    layout: of the weights.
    known_as: name of the published file; empty when its digest is not known.
    """

    images: FeatureNetwork
    text_cell: Any
    tokenizer: Tokenizer
    logit_scale: float
    activation: tuple[Activation, Activation]
    layout: str
    known_as: str

    def texts(self, captions: Sequence[str]) -> Float32:
        """Return the features (n, embedding) float32 of captions, not normalised.

        Longer captions are cut after 75 tokens and keep their end token.
        """
        tokens = self.tokenizer(list(captions))
        ends = (tokens == self.tokenizer.end).argmax(1).astype(np.int32)  # the first end token
        return in_batches(self.text_cell, self.images.batch_size, self.images.width, tokens, ends)

    def cut_off(self, captions: Sequence[str]) -> dict[str, str]:
        """Map each caption that is too long to the end of it that CLIP does not see."""
        return {caption: rest for caption in captions if (rest := self.tokenizer.cut_off(caption))}

    def with_recipe(self, recipe: ImageRecipe) -> "ClipNetwork":
        """Return the same network with images prepared by another recipe."""
        text = _recipe_text(recipe, self.activation)
        return replace(self, images=replace(self.images, preprocess=recipe, recipe=text))


@dataclass(frozen=True)
class ClipWeights:
    """Holds opened weights, whose values are read later.

    parts: the tensors under OpenAI's names.
    declarations: with both activations.
    """

    layout: str
    parts: Mapping[str, Part]
    digest: str
    declarations: Declarations
    geometry: Geometry


def read_clip(path: Path, activation: Activation | None = None) -> ClipWeights:
    """Open the weights of a CLIP with a ViT image tower: a file, or a folder of Hugging Face or open_clip.

    activation: for weights that do not declare theirs.
    Raises ConfigError: when the weights cannot be read, are another model's, or do not declare their activation.
    """
    contents, files = open_contents_of(path)
    layout, parts = openai_parts(path, contents.tensors)
    if "visual.conv1.weight" not in parts or len(parts["visual.conv1.weight"].shape) != 4:
        raise ConfigError(f"{path}: has no image tower with patches; {GIVE}")
    try:
        digest = sha256_of(files)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); {GIVE}") from None
    found = declared(path, layout, contents.container, digest, parts["visual.conv1.weight"].shape[0])
    found = with_activation(path, found, activation)
    geometry = geometry_of(path, parts, found.image_heads, found.text_heads)
    return ClipWeights(layout, parts, digest, found, geometry)


def open_clip(path: Path, activation: Activation | None = None, batch_size: int = BATCH_SIZE) -> ClipNetwork:
    """Open a CLIP as `read_clip` does, and build its towers.

    Raises ConfigError: as `read_clip`, and when a value is NaN or infinite.
    """
    weights = read_clip(path, activation)
    geometry, declarations = weights.geometry, weights.declarations
    of_image, of_text = declarations.activations
    rng = np.random.default_rng(0)
    image_tower = ImageTower(geometry, of_image, rng)
    text_tower = TextTower(geometry, of_text, rng)
    _fill(image_tower, weights.parts, "visual.")
    _fill(text_tower, weights.parts, "")
    recipe = replace(declarations.recipe, side=geometry.side)
    images = FeatureNetwork(
        geometry.name,
        weights.digest,
        _recipe_text(recipe, (of_image, of_text)),
        geometry.embedding,
        geometry.side,
        recipe,
        image_tower,
        batch_size,
    )
    scale = np.exp(weights.parts["logit_scale"].values("logit_scale").astype(np.float64)).reshape(())
    return ClipNetwork(
        images,
        text_tower,
        Tokenizer(CONTEXT),
        float(scale),
        (of_image, of_text),
        weights.layout,
        declarations.known_as,
    )


def open_contents_of(path: Path) -> tuple[Contents, list[Path]]:
    """Return the tensors of a file, or of the weights' files in a folder, and these files.

    Raises ConfigError: when the folder has none, or a file cannot be read.
    """
    if not path.is_dir():
        return open_contents(path), [path]
    file = next((path / name for name in FILES if (path / name).is_file()), None)
    if file is None:
        raise ConfigError(f"{path}: has none of {', '.join(FILES)}; give a complete folder, or the file itself")
    contents = read_sharded(file) if file.suffix == ".json" else open_contents(file)
    return contents, sorted({tensor.path for tensor in contents.tensors.values()})


def _recipe_text(recipe: ImageRecipe, activation: tuple[Activation, Activation]) -> str:
    return f"{recipe.text} {'/'.join(dict.fromkeys(activation))}"


def _fill(cell: Any, parts: Mapping[str, Part], prefix: str) -> None:
    """Copy the tensors into the cell's parameters, one at a time."""
    for name, parameter in cell.parameters_and_names():
        source = f"{prefix}{name.removeprefix('encoder.')}"
        values = parts[source].values(printable(source))
        parameter.set_data(Tensor.from_numpy(np.ascontiguousarray(values)))
