"""The data section of a training document."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class DataConfig(BaseModel):
    """Where the images are and how they become a batch.

    path: a folder with images and *.csv (columns dir,text). resolution: square side in pixels. caption_drop: share of
    captions replaced by the empty one, for classifier-free guidance. prefetch_batches: batches made ahead.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    resolution: Annotated[int, Field(gt=0)]
    crop: Literal["center", "random"] = "center"
    horizontal_flip: bool = False
    caption_drop: Annotated[float, Field(ge=0, lt=1)] = 0.1
    prefetch_batches: Annotated[int, Field(gt=0)] = 4
