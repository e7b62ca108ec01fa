"""Describes all that decides an image, and keeps it inside the PNG so that the image can be made again."""

from pathlib import Path
from typing import Annotated, Literal, Self

from PIL import Image, PngImagePlugin
from pydantic import Field, model_validator

from launcher.contract.config import ConfigError, Section
from vpred_train.config.sampling import SamplingConfig
from vpred_train.diffusion.parameterization import ParameterizationRecord
from vpred_train.foreign import parsed, printable, require_regular

TEXT_KEY = "vpred"


class LoraRequest(Section):
    """Holds LoRA weights and how strongly they are added to the base weights.

    xxh3: digest of `path`
    scale: factor of the LoRA change
    """

    path: Path
    xxh3: str
    scale: Annotated[float, Field(allow_inf_nan=False)] = 1.0


class ImageRequest(Section):
    """Describes one image.

    The compiled batch and the image's row in it decide its last bits, since matrix products round a row by its place.

    height, width: pixels
    sampling: `seed` is this image's seed, `batch_size` the compiled batch
    row: the image's row in the compiled batch
    weights: a file or a folder
    weights_xxh3: digest of `weights`
    record: meaning of the tensors of `weights`
    """

    format: Literal["vpred-image-2"] = "vpred-image-2"
    prompt: str
    negative_prompt: str = ""
    height: Annotated[int, Field(gt=0)]
    width: Annotated[int, Field(gt=0)]
    sampling: SamplingConfig
    row: Annotated[int, Field(ge=0)] = 0
    weights: Path
    weights_xxh3: str
    lora: LoraRequest | None = None
    record: ParameterizationRecord

    @model_validator(mode="after")
    def row_is_in_the_batch(self) -> Self:
        if self.row >= self.sampling.batch_size:
            raise ValueError(f"row is {self.row}, not below the batch of {self.sampling.batch_size}")
        return self

    def png_text(self) -> PngImagePlugin.PngInfo:
        """Make the PNG chunk that holds this request."""
        text = PngImagePlugin.PngInfo()
        text.add_itxt(TEXT_KEY, self.model_dump_json())
        return text


def read_request(path: Path) -> ImageRequest:
    """Read the request inside an image that vpred-sample made. Raises ConfigError: when it holds none."""
    remedy = "give a PNG that vpred-sample made"
    try:
        require_regular(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read as an image ({error.strerror}); {remedy}") from None
    try:
        with Image.open(path, formats=("PNG",)) as image:
            text = getattr(image, "text", {}).get(TEXT_KEY)
    except Exception as error:  # whatever Pillow raises for one image is that image's fault
        raise ConfigError(f"{path}: cannot be read as an image ({printable(str(error))}); {remedy}") from None
    if text is None:
        raise ConfigError(f"{path}: holds no '{TEXT_KEY}' text chunk; {remedy}")
    return parsed(ImageRequest, text, f"{path}: its settings", "was it made by a newer version?")
