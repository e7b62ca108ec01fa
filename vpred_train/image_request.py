"""What decides an image, kept inside its PNG so that it can be made again."""

from pathlib import Path
from typing import Annotated, Literal

from PIL import Image, PngImagePlugin, UnidentifiedImageError
from pydantic import Field, ValidationError

from launcher.contract.config import ConfigError, Section
from vpred_train.config import SamplingConfig
from vpred_train.diffusion.parameterization import ParameterizationRecord

TEXT_KEY = "vpred"


class LoraRequest(Section):
    """LoRA weights and how strongly they are added to the others; `xxh3` is the digest of `path`."""

    path: Path
    xxh3: str
    scale: Annotated[float, Field(allow_inf_nan=False)] = 1.0


class ImageRequest(Section):
    """One image. `sampling.seed` is its own. The compiled batch `sampling.batch_size` and the `row` of the image in it
    decide its last bits, since matrix products round a row by its place.

    `height` and `width` are in pixels; `weights_xxh3` is the digest of `weights`, a file or a folder, and `record` what
    its tensors mean.
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

    def png_text(self) -> PngImagePlugin.PngInfo:
        """The PNG chunk that holds this request."""
        text = PngImagePlugin.PngInfo()
        text.add_itxt(TEXT_KEY, self.model_dump_json())
        return text


def read_request(path: Path) -> ImageRequest:
    """The request inside an image of ours. Raises ConfigError."""
    try:
        with Image.open(path) as image:
            text = getattr(image, "text", {}).get(TEXT_KEY)
    except (OSError, UnidentifiedImageError) as error:
        raise ConfigError(f"{path}: cannot be read as an image ({error}); give a PNG that vpred-sample made") from None
    if text is None:
        raise ConfigError(f"{path}: holds no '{TEXT_KEY}' text chunk; give a PNG that vpred-sample made")
    try:
        return ImageRequest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{path}: its settings: {where}: {first['msg']}; was it made by a newer version?") from None
