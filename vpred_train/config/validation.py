"""The recipe's sections on validation and previews."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from launcher.contract.config import MAY_CHANGE, OF_THE_MACHINE, Section
from vpred_train.config.numbers import ImageSeed, Positive, Samples, Seed


class ValidationConfig(Section):
    """The loss on images that are never trained on, of the raw weights and of the average of `ema.use`.

    One of `share`, `count` and `path` chooses the images. Images with equal files count as one.
    """

    every_samples: Annotated[Samples, MAY_CHANGE]
    """Measure before the first step, after each multiple of this many training samples, and at the end."""

    share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the images to hold out, by a hash of the file's bytes and `seed`. Adding images moves no other one."""

    count: Annotated[int, Field(ge=2, le=1 << 53)] | None = None
    """Number of images to hold out: those with the lowest hashes. A new image may take the place of another."""

    path: Annotated[Path | None, OF_THE_MACHINE] = None
    """Folder with other images, in one of the forms of `data.path`. The run refuses images that it also trains on."""

    bins: Annotated[int, Field(ge=2, le=1 << 20)] = 6
    """Number of equal ranges of timesteps with a loss of their own, at most `diffusion.timesteps`."""

    draws: Annotated[Positive, MAY_CHANGE] = 1
    """Number of timesteps and noises for each image and bin. They are the same every time."""

    batch_size: Annotated[Positive, MAY_CHANGE] = 16
    """Number of images that go through the networks at once, on one rank."""

    seed: Seed = 0
    """Seed of the choice of images and of their noise. It is not the run's, so that runs with other seeds compare."""

    @model_validator(mode="after")
    def _check_one_choice_of_images(self) -> Self:
        given = [key for key in ("share", "count", "path") if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(f"validation has {' and '.join(given) or 'no images'}; give one of share, count and path")
        return self


class PreviewsConfig(Section):
    """Grids of samples while the run trains, in RUN/grids. They use `sampling` and the average of `ema.use`."""

    every_samples: Samples
    """Sample before the first step, after each multiple of this many training samples, and at the end."""

    prompts: tuple[str, ...] = ()
    """Prompts to sample, in place of `count`."""

    count: Positive | None = None
    """Number of captions to sample, evenly spread over the held-out images, or over the data without `validation`."""

    seed: ImageSeed = 42
    """Seed of the first image; the others count up from it. 42 is also that of `sampling`."""

    @model_validator(mode="after")
    def _check_one_choice_of_prompts(self) -> Self:
        if bool(self.prompts) == (self.count is not None):
            found = (
                f"{len(self.prompts)} prompts and count {self.count}" if self.prompts else "neither prompts nor count"
            )
            raise ValueError(f"previews has {found}; give one of them")
        return self
