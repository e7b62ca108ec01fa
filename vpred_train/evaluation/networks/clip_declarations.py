"""Finds out what the tensors of a CLIP do not say: its activation, its heads, and how images are prepared.

A wrong activation fails nowhere and moves every score. So it comes from a configuration beside the weights, from the
container, or from the digest of a known file; otherwise the user must declare it.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field

from launcher.contract.config import ConfigError
from vpred_train.evaluation.networks.image_recipe import OPENAI_MEAN, OPENAI_STD, ImageRecipe, Triple
from vpred_train.foreign import Foreign, printable, read_document
from vpred_train.models.text_encoder import Activation

OPENAI_DIGESTS = {
    "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af": "OpenAI ViT-B/32",
    "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f": "OpenAI ViT-B/16",
    "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836": "OpenAI ViT-L/14",
    "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02": "OpenAI ViT-L/14@336px",
}  # SHA-256 of openai/CLIP's files -> name
OPENCLIP_DIGESTS = {
    "9a78ef8e8c73fd0df621682e7a8e8eb36c6916cb3c16b291a082ecd52ab79cc4": "OpenCLIP ViT-H/14 laion2b_s32b_b79k",
}
OPENCLIP_CONFIG, HUGGING_FACE_CONFIG, PROCESSOR = "open_clip_config.json", "config.json", "preprocessor_config.json"
OPENAI_RECIPE = ImageRecipe(224)
AGAIN = "download the folder again"
BICUBIC = 3  # Pillow's number, which Hugging Face writes
Numbers = Annotated[list[float], Field(min_length=3, max_length=3)]
Heads = Annotated[int, Field(gt=0, le=1 << 10)]


@dataclass(frozen=True)
class Declarations:
    """Holds what is known beside the tensors.

    image_activation, text_activation: None when nothing declares them.
    image_heads, text_heads: None derives them from the widths.
    recipe: how images are prepared; its side is replaced by the weights'.
    known_as: name of a published file; empty when the file is not known.
    """

    image_activation: Activation | None = None
    text_activation: Activation | None = None
    image_heads: int | None = None
    text_heads: int | None = None
    recipe: ImageRecipe = OPENAI_RECIPE
    known_as: str = ""

    @property
    def activations(self) -> tuple[Activation, Activation]:
        """Return the activations of image and text tower. Raises ValueError: when one is unknown."""
        if self.image_activation is None or self.text_activation is None:
            raise ValueError("an activation is unknown; call with_activation first")
        return self.image_activation, self.text_activation


class _OpenClipVision(Foreign):
    width: Annotated[int, Field(gt=0, le=1 << 16)] = 768
    head_width: Heads = 64


class _OpenClipText(Foreign):
    heads: Heads = 8


class _OpenClipModel(Foreign):
    quick_gelu: bool = False
    vision_cfg: _OpenClipVision
    text_cfg: _OpenClipText


class _OpenClipPreprocess(Foreign):
    mean: Numbers | None = None
    std: Numbers | None = None
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"


class _OpenClipDocument(Foreign):
    model: _OpenClipModel = Field(alias="model_cfg")
    preprocess: _OpenClipPreprocess = Field(_OpenClipPreprocess(), alias="preprocess_cfg")


class _HuggingFaceTower(Foreign):
    hidden_act: str = "quick_gelu"
    hidden_size: Annotated[int, Field(gt=0, le=1 << 16)] = 768
    num_attention_heads: Heads = 12


class _HuggingFaceText(Foreign):
    hidden_act: str = "quick_gelu"
    num_attention_heads: Heads = 8


class _HuggingFaceDocument(Foreign):
    """The defaults are those of transformers, which may leave out values that equal them."""

    vision_config: _HuggingFaceTower = _HuggingFaceTower()
    text_config: _HuggingFaceText = _HuggingFaceText()


class _Processor(Foreign):
    image_mean: Numbers | None = None
    image_std: Numbers | None = None
    resample: int = BICUBIC
    size: int | dict[str, int] = 224


def declared(path: Path, layout: str, container: str, digest: str, image_width: int) -> Declarations:
    """Return what is known about the weights at `path`, a file or a folder.

    layout: of the tensors, as `openai_parts` names it.
    container: of the file; a TorchScript is OpenAI's own.
    image_width: of the image tower's tensors, which a configuration beside the file must repeat.
    Raises ConfigError: when a configuration is damaged, describes another model or asks for a step that is not there.
    """
    folder = path if path.is_dir() else path.parent
    if layout == "hugging_face":
        return _from_hugging_face(folder, image_width)
    if layout == "openai" and (document := read_document(_OpenClipDocument, folder / OPENCLIP_CONFIG, AGAIN)):
        return _from_open_clip(folder, document, image_width)
    if container == "torchscript" or digest in OPENAI_DIGESTS:
        return Declarations("quick_gelu", "quick_gelu", known_as=OPENAI_DIGESTS.get(digest, ""))
    if digest in OPENCLIP_DIGESTS:
        return Declarations("gelu", "gelu", known_as=OPENCLIP_DIGESTS[digest])
    return Declarations()


def with_activation(path: Path, found: Declarations, requested: Activation | None) -> Declarations:
    """Return `found` with both activations known.

    requested: what the user declares; None leaves it to the file.
    Raises ConfigError: when neither declares one, or they contradict each other.
    """
    known = {found.image_activation, found.text_activation} - {None}
    if requested is None:
        if not found.image_activation or not found.text_activation:
            raise ConfigError(
                f"{path}: does not declare its activation, and a wrong one changes every score; give --clip-activation "
                "quick_gelu (OpenAI, MetaCLIP, DFN, MindONE) or gelu (LAION, HPSv2, PickScore)"
            )
        return found
    if known and known != {requested}:
        declared_one = ", ".join(sorted(filter(None, known)))
        raise ConfigError(f"{path}: declares the activation {declared_one}, not {requested}; leave the option out")
    return replace(found, image_activation=requested, text_activation=requested)


def _from_hugging_face(folder: Path, image_width: int) -> Declarations:
    path = folder / HUGGING_FACE_CONFIG
    document = read_document(_HuggingFaceDocument, path, AGAIN)
    if document is None:
        return Declarations()
    _require_width(path, document.vision_config.hidden_size, image_width)
    return Declarations(
        _activation(path, "vision_config", document.vision_config.hidden_act),
        _activation(path, "text_config", document.text_config.hidden_act),
        document.vision_config.num_attention_heads,
        document.text_config.num_attention_heads,
        _processed(folder / PROCESSOR),
    )


def _from_open_clip(folder: Path, document: _OpenClipDocument, image_width: int) -> Declarations:
    path, model, preprocess = folder / OPENCLIP_CONFIG, document.model, document.preprocess
    _require_width(path, model.vision_cfg.width, image_width)
    if preprocess.interpolation != "bicubic" or preprocess.resize_mode not in ("shortest", "squash"):
        asked = f"{preprocess.interpolation} {preprocess.resize_mode}"
        raise ConfigError(f"{path}: preprocess_cfg asks for {printable(asked)}; known are bicubic shortest and squash")
    fit: Literal["shortest", "squash"] = "squash" if preprocess.resize_mode == "squash" else "shortest"
    activation: Activation = "quick_gelu" if model.quick_gelu else "gelu"
    recipe = _recipe(preprocess.mean, preprocess.std, fit)
    heads = max(1, image_width // model.vision_cfg.head_width)
    return Declarations(activation, activation, heads, model.text_cfg.heads, recipe)


def _processed(path: Path) -> ImageRecipe:
    """Return the recipe of Hugging Face's preprocessor; OpenAI's when there is none."""
    document = read_document(_Processor, path, AGAIN)
    if document is None:
        return OPENAI_RECIPE
    if document.resample != BICUBIC:
        raise ConfigError(f"{path}: resample is {document.resample}; known is {BICUBIC} (bicubic)")
    both = isinstance(document.size, dict) and "shortest_edge" not in document.size
    return _recipe(document.image_mean, document.image_std, "squash" if both else "shortest")


def _recipe(mean: list[float] | None, std: list[float] | None, fit: Literal["shortest", "squash"]) -> ImageRecipe:
    """Return the recipe; OpenAI's mean and standard deviation where a configuration has none."""
    return ImageRecipe(224, _triple(mean, OPENAI_MEAN), _triple(std, OPENAI_STD), fit)


def _activation(path: Path, tower: str, name: str) -> Activation:
    for known in get_args(Activation):
        if name == known:
            return known
    raise ConfigError(f"{path}: {tower}.hidden_act is {printable(repr(name))}; known are quick_gelu and gelu")


def _require_width(path: Path, declared_width: int, width: int) -> None:
    if declared_width != width:
        raise ConfigError(
            f"{path}: declares an image tower of width {declared_width}, but the weights beside it have {width}; "
            "give the weights a folder with their own configuration"
        )


def _triple(numbers: list[float] | None, otherwise: Triple) -> Triple:
    if numbers is None:
        return otherwise
    first, second, third = numbers
    return first, second, third
