"""The data section of a training document."""

from pathlib import Path
from typing import Annotated, Literal, Self

from PIL import ImageColor
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticKnownError

# What may change when a run goes on, declared as the training document does: how and where data are read, not which.
_OF_THE_MACHINE = Field(json_schema_extra={"on_resume": "machine"})
_MAY_CHANGE = Field(json_schema_extra={"on_resume": "logged"})


class BucketsConfig(BaseModel):
    """Training at several aspect ratios, each batch at one, all of about resolution^2 pixels.

    multiple_px: of which every side is one. max_aspect: the longer side over the shorter, at most. max_shapes: how many
    sizes there may be; each is a graph to compile.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    multiple_px: Annotated[int, Field(gt=0, le=16384)] = 64
    max_aspect: Annotated[float, Field(ge=1, le=1000)] = 2.0
    max_shapes: Annotated[int, Field(gt=0, le=64)] = 7


class SourceConfig(BaseModel):
    """One folder of a mixture. weight: how often each of its samples comes in an epoch, on average."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Annotated[Path, _OF_THE_MACHINE]
    weight: Annotated[float, Field(gt=0, le=1e6)] = 1.0


class DataConfig(BaseModel):
    """Where the images are and how they become a batch.

    path: a folder with images and *.csv (columns dir,text), or with metadata.jsonl, WebDataset *.tar or *.parquet.
    sources: in place of `path`, several such folders that are mixed, each with a weight. An epoch takes weight x n of a
    folder's n samples, rounded to a whole number and at least one (with buckets: so of its samples of each size),
    shuffled among the others'. Each folder is gone through in turns of its own: all of its samples once before any
    comes again; a sample's crops, flips, dropped captions and noise are keyed by how often it has come.
    A caption that is a list of strings, in JSON and Parquet, is several of one image: each time the image comes, one is
    drawn by (seed, epoch, sample).
    bad_samples: rows that cannot be trained on end the run before it begins (fail), or are left out and listed in the
    run directory (skip). background: colour under transparent pixels, as Pillow writes it. resolution: square side in
    pixels. caption_drop: share of captions replaced by the empty one, for classifier-free guidance. buckets: train at
    several aspect ratios; without, on squares. workers: processes that decode images, for each rank; with 0 a thread of
    the rank does it, and the rank itself what takes next to no time. prefetch_batches: batches made ahead. cache: a
    folder that `vpred-data encode` has filled, from which training reads the autoencoder's moments and the text
    encoder's features; it holds centre crops, of each image at the size that it is trained at, as they are and with
    `horizontal_flip` mirrored.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sources: tuple[SourceConfig, ...] = ()
    path: Annotated[Path | None, Field(validate_default=True), _OF_THE_MACHINE] = None
    bad_samples: Annotated[Literal["fail", "skip"], _MAY_CHANGE] = "fail"
    background: str = "white"
    resolution: Annotated[int, Field(gt=0, le=16384)]
    crop: Literal["center", "random"] = "center"
    horizontal_flip: bool = False
    caption_drop: Annotated[float, Field(ge=0, lt=1)] = 0.1
    buckets: BucketsConfig | None = None
    workers: Annotated[int, Field(ge=0, le=1024), _OF_THE_MACHINE] = 0
    prefetch_batches: Annotated[int, Field(gt=0, le=1024), _OF_THE_MACHINE] = 4
    cache: Annotated[Path | None, _MAY_CHANGE] = None

    @field_validator("sources")
    @classmethod
    def folders_come_once(cls, value: tuple[SourceConfig, ...]) -> tuple[SourceConfig, ...]:
        paths = [source.path for source in value]
        twice = next((path for path in paths if paths.count(path) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice} is there twice; give it once, with the sum of the weights")
        return value

    @field_validator("path")
    @classmethod
    def path_or_sources(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        sources = info.data.get("sources")  # None: refused already
        if value is None and sources == ():
            raise PydanticKnownError("missing")
        if value is not None and sources:
            raise ValueError("there are data.sources too; give one of them, and null for the other")
        return value

    @property
    def folders(self) -> tuple[SourceConfig, ...]:
        """`sources`, or `path` as the only one."""
        return self.sources or ((SourceConfig(path=self.path),) if self.path is not None else ())

    @model_validator(mode="after")
    def the_square_is_a_bucket(self) -> Self:
        if self.buckets and self.resolution % self.buckets.multiple_px:
            raise ValueError(
                f"resolution {self.resolution} is not a multiple of buckets.multiple_px {self.buckets.multiple_px}"
            )
        return self

    @field_validator("background")
    @classmethod
    def background_is_a_colour(cls, value: str) -> str:
        if len(ImageColor.getrgb(value)) != 3:
            raise ValueError("must have no transparency; give a colour such as white or #808080")
        return value

    @model_validator(mode="after")
    def cached_images_are_cut_one_way(self) -> Self:
        if self.cache is not None and self.crop != "center":
            raise ValueError("cache holds centre crops, but crop is 'random'; set crop: center, or leave out cache")
        return self
