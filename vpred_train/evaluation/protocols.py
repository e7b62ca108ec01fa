"""Defines the protocols of published numbers: all the settings that a number needs to be compared with theirs."""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from launcher.contract.config import ConfigError
from vpred_train.evaluation.result import Metric, parse_requirement
from vpred_train.foreign import printable, require_regular

if TYPE_CHECKING:
    from _csv import Reader

MLPERF_CAPTIONS = 30_000
MLPERF_INTERVAL_IMAGES = 512_000  # training images between two evaluations
MLPERF_COLUMNS = ("image_id", "id", "caption")
LONGEST_CAPTION = 1 << 16  # characters


@dataclass(frozen=True)
class SamplerSettings:
    """Settings of the sampler. side: height and width of an image in pixels."""

    name: str
    steps: int
    eta: float
    guidance_scale: float
    side: int


@dataclass(frozen=True)
class Protocol:
    """All that two evaluations must share so that their numbers can be compared.

    recipe: of FID's input, a name of resize.RECIPES.
    fid_pixels: what FID sees of a decoded image: "uint8", as a user gets it, or "float", before the rounding.
    clip_architecture: name of OpenCLIP. clip_fit: "shortest" or "squash", of networks' ImageRecipe.
    clip_scale: the score is this times the mean cosine.
    captions: their number. None: any.
    sampler: None: of the user's choice.
    requirements: as --require takes them.
    """

    recipe: str
    fid_pixels: Literal["uint8", "float"]
    clip_architecture: str
    clip_fit: Literal["shortest", "squash"]
    clip_scale: float
    captions: int | None = None
    sampler: SamplerSettings | None = None
    requirements: tuple[str, ...] = ()

    def faults(self, metrics: dict[str, Metric]) -> list[str]:
        """Return a line for each requirement that is not met. Raises ConfigError when a metric is missing."""
        found = (parse_requirement(text).fault(metrics) for text in self.requirements)
        return [fault for fault in found if fault]


# mindone: examples/stable_diffusion_v2/eval of mindspore-lab/mindone, its default backend.
# mlperf_sd2: stable_diffusion of mlcommons/training, retired. Its published scores were computed in float16.
PROTOCOLS: dict[str, Protocol] = {
    "mindone": Protocol("mindone", "uint8", "ViT-B-16", "squash", 100),
    "mlperf_sd2": Protocol(
        recipe="pytorch",
        fid_pixels="float",
        clip_architecture="ViT-H-14",
        clip_fit="shortest",
        clip_scale=1,
        captions=MLPERF_CAPTIONS,
        sampler=SamplerSettings("ddim", steps=50, eta=0, guidance_scale=8, side=512),
        requirements=("fid<=90", "clip_score>=0.15"),
    ),
}


def protocol_of(name: str) -> Protocol:
    """Return the protocol of a name. Raises ConfigError when it is unknown."""
    if name not in PROTOCOLS:
        raise ConfigError(f"protocol {name!r} is unknown; known are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def mlperf_interval_steps(global_batch: int) -> int:
    """Return the optimizer steps between two evaluations of mlperf_sd2, at `global_batch` images per step."""
    return -(-MLPERF_INTERVAL_IMAGES // global_batch)


@dataclass(frozen=True)
class CocoCaption:
    """A caption of COCO: the number of its image, its own number, its text."""

    image_id: int
    id: int
    caption: str


def read_mlperf_captions(path: Path, count: int = MLPERF_CAPTIONS) -> list[CocoCaption]:
    """Return the captions of MLPerf's TSV file in its order: columns image_id, id and caption under a header.

    Fields are quoted as in CSV where they need it. Empty lines do not count.
    Raises ConfigError: when the file or a row is not of that kind, a number occurs twice, or `count` does not fit.
    """
    try:
        require_regular(path)
        text = path.read_bytes().decode().removeprefix("\ufeff")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8") from None
    captions = list(_captions(path, csv.reader(io.StringIO(text, newline=""), delimiter="\t", strict=True)))
    if len(captions) != count:
        raise ConfigError(f"{path}: {len(captions)} captions; the protocol has {count}")
    return captions


def _captions(path: Path, reader: "Reader") -> Iterator[CocoCaption]:
    seen: set[int] = set()
    try:
        columns = _columns(path, next(reader, []))
        for row in reader:
            if not row:
                continue
            where = f"{path}: line {reader.line_num}"
            if len(row) != len(columns):
                raise ConfigError(f"{where}: {len(row)} fields, not {len(columns)} as in the header")
            values = dict(zip(columns, row, strict=True))
            caption = CocoCaption(_number(values, "image_id", where), _number(values, "id", where), values["caption"])
            if not caption.caption.strip():
                raise ConfigError(f"{where}: the caption is empty")
            if len(caption.caption) > LONGEST_CAPTION:
                raise ConfigError(f"{where}: a caption of {len(caption.caption)} characters; is a quote not closed?")
            if caption.id in seen:
                raise ConfigError(f"{where}: id {caption.id} occurs a second time")
            seen.add(caption.id)
            yield caption
    except csv.Error as error:
        raise ConfigError(f"{path}: line {reader.line_num}: {error}") from None


def _columns(path: Path, header: list[str]) -> list[str]:
    missing = [column for column in MLPERF_COLUMNS if column not in header]
    if missing or len(set(header)) != len(header):
        found = printable(", ".join(header)) or "nothing"
        raise ConfigError(f"{path}: the first line has {found}; columns {', '.join(MLPERF_COLUMNS)} are needed")
    return header


def _number(values: dict[str, str], column: str, where: str) -> int:
    text = values[column]
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise ConfigError(f"{where}: {column} {printable(text)!r} is not a whole number")
    return int(text)
