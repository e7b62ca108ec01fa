"""Defines the data section of a recipe."""

from pathlib import Path
from typing import Annotated, Literal, Self

from PIL import ImageColor
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticKnownError

# A resumed run may change these keys, declared as in the recipe: how and where data are read, not which data.
_OF_THE_MACHINE = Field(json_schema_extra={"on_resume": "machine"})
_MAY_CHANGE = Field(json_schema_extra={"on_resume": "logged"})
# The text below a field is the key's description in the JSON Schema.
_SECTION = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class BucketsConfig(BaseModel):
    """Sizes for training at several aspect ratios. All have about resolution^2 pixels, and a batch has one size."""

    model_config = _SECTION

    multiple_px: Annotated[int, Field(gt=0, le=16384)] = 64
    """Each side of an image is a multiple of this, in pixels.
    64 pixels are one pixel of the deepest level of SD2's UNet: 8 per latent, halved three times."""

    max_aspect: Annotated[float, Field(ge=1, le=1000)] = 2.0
    """Upper bound of the longer side divided by the shorter. More extreme images are cropped to it."""

    max_shapes: Annotated[int, Field(gt=0, le=64)] = 7
    """Upper bound of the number of sizes. Each size is one more graph to compile.
    The other defaults give 7 sizes at a resolution of 768, and 5 at 512."""


class SourceConfig(BaseModel):
    """One folder of a mixture."""

    model_config = _SECTION

    path: Annotated[Path, _OF_THE_MACHINE]
    """Folder in one of the forms of `data.path`. A relative path in a recipe starts at the recipe's folder."""

    weight: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """Number of times that an epoch takes each sample, on average.
    An epoch takes weight x n of n samples, rounded to a whole number of at least 1."""


class DataConfig(BaseModel):
    """Folders of images and captions, and the way to a batch."""

    model_config = _SECTION

    sources: tuple[SourceConfig, ...] = ()
    """Folders to mix, each with a weight, in place of `path`.
    All samples of a folder come once before any of them comes again."""

    path: Annotated[Path | None, Field(validate_default=True), _OF_THE_MACHINE] = None
    """Folder with *.csv (columns dir,text) and images, metadata.jsonl, *.tar (WebDataset) or *.parquet.
    A relative path in a recipe starts at the recipe's folder."""

    bad_samples: Annotated[Literal["fail", "skip"], _MAY_CHANGE] = "fail"
    """If a row cannot be trained on, "fail" ends the run before it begins.
    "skip" leaves such rows out and lists them in RUN/bad_samples.jsonl."""

    background: str = "white"
    """Colour under transparent pixels, as Pillow writes colours: a name such as white, or #rrggbb."""

    resolution: Annotated[int, Field(gt=0, le=16384)]
    """Side of the square training images in pixels. With `buckets`, all sizes have about resolution^2 pixels."""

    crop: Literal["center", "random"] = "center"
    """Part of the resized image that is trained on. The image just covers the training size.
    "random" draws the place for each epoch and sample."""

    horizontal_flip: bool = False
    """Mirror each image with probability 0.5. The default is false: a mirrored image may contradict its caption."""

    caption_drop: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of captions replaced by the empty one. Classifier-free guidance needs it.
    0.1 and 0.2 work best in Ho & Salimans 2022 (arXiv 2207.12598)."""

    buckets: BucketsConfig | None = None
    """Train at several aspect ratios (NovelAI 2022). {} takes the defaults; null trains on squares."""

    workers: Annotated[int, Field(ge=0, le=1024), _OF_THE_MACHINE] = 0
    """Number of processes that decode images, for each rank. 0 decodes in a thread of the rank."""

    prefetch_batches: Annotated[int, Field(gt=0, le=1024), _OF_THE_MACHINE] = 4
    """Number of batches that a rank makes ahead of training."""

    cache: Annotated[Path | None, _MAY_CHANGE] = None
    """Folder that `vpred-data encode` has filled with latent moments and text features.
    Training reads it instead of images. It holds centre crops only."""

    @field_validator("sources")
    @classmethod
    def _check_folders_differ(cls, value: tuple[SourceConfig, ...]) -> tuple[SourceConfig, ...]:
        paths = [source.path for source in value]
        twice = next((path for path in paths if paths.count(path) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice} is listed twice; list it once, with the sum of the weights")
        return value

    @field_validator("path")
    @classmethod
    def _check_one_of_path_and_sources(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        sources = info.data.get("sources")  # None: its own check has failed already
        if value is None and sources == ():
            raise PydanticKnownError("missing")
        if value is not None and sources:
            raise ValueError("data.sources is set too; give one of them, and null for the other")
        return value

    @property
    def folders(self) -> tuple[SourceConfig, ...]:
        """`sources`, or `path` as the only one."""
        return self.sources or ((SourceConfig(path=self.path),) if self.path is not None else ())

    @model_validator(mode="after")
    def _check_square_is_a_bucket(self) -> Self:
        if self.buckets and self.resolution % self.buckets.multiple_px:
            raise ValueError(
                f"resolution {self.resolution} is not a multiple of buckets.multiple_px {self.buckets.multiple_px}"
            )
        return self

    @field_validator("background")
    @classmethod
    def _check_background_is_opaque(cls, value: str) -> str:
        if len(ImageColor.getrgb(value)) != 3:
            raise ValueError("must have no transparency; give a colour such as white or #808080")
        return value

    @model_validator(mode="after")
    def _check_crop_fits_cache(self) -> Self:
        if self.cache is not None and self.crop != "center":
            raise ValueError("cache holds centre crops, but crop is 'random'; set crop: center, or leave out cache")
        return self
