"""The sections of a training document that look at the run while it trains."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from launcher.contract.config import MAY_CHANGE, OF_THE_MACHINE, Section
from vpred_train.config.numbers import ImageSeed, Positive, Samples, Seed


class ValidationConfig(Section):
    """The loss on images that are never trained on, of the raw weights and of the average of `ema.use`.

    Of `share` of the images, `count` of them or `path`, another folder, one is given. An image is held out by a hash of
    its file's bytes and `seed`: below `share`, where no other image matters, or among the `count` lowest, where a new
    image may take the place of another. Rows with equal files are one image and stay together. The timesteps are cut
    into `bins` equal parts, ranges of log SNR; each image has `draws` timesteps and noises in each of them, the same
    every time.
    `seed`: that of the choice and of the noise, apart from the run's own, so that runs with other seeds compare.
    `batch_size`: images that go through the networks at once, on one rank.
    """

    every_samples: Annotated[Samples, MAY_CHANGE]
    share: Annotated[float, Field(gt=0, lt=1)] | None = None
    count: Annotated[int, Field(ge=2, le=1 << 53)] | None = None
    path: Annotated[Path | None, OF_THE_MACHINE] = None
    bins: Annotated[int, Field(ge=2, le=1 << 20)] = 6
    draws: Annotated[Positive, MAY_CHANGE] = 1
    batch_size: Annotated[Positive, MAY_CHANGE] = 16
    seed: Seed = 0

    @model_validator(mode="after")
    def one_choice_of_images(self) -> Self:
        given = [key for key in ("share", "count", "path") if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(f"validation has {' and '.join(given) or 'no images'}; give one of share, count and path")
        return self


class PreviewsConfig(Section):
    """Grids of samples while the run trains, as at its end by `sampling` with the average of `ema.use`, in RUN/grids.

    `prompts`: fixed ones; without them `count` captions, of held-out images where there are any. `seed`: that of the
    first image; the others count up.
    """

    every_samples: Samples
    prompts: tuple[str, ...] = ()
    count: Positive | None = None
    seed: ImageSeed = 42

    @model_validator(mode="after")
    def one_choice_of_prompts(self) -> Self:
        if bool(self.prompts) == (self.count is not None):
            found = (
                f"{len(self.prompts)} prompts and count {self.count}" if self.prompts else "neither prompts nor count"
            )
            raise ValueError(f"previews has {found}; give one of them")
        return self
