"""MindONE's layout: a folder of images and any number of *.csv with the columns `dir,text`."""

import contextlib
import io
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import ExifTags, Image

from data.errors import DataError
from data.transforms import decode

COLUMNS = ("dir", "text")
SHOWN_FAULTS = 20
CHECK_THREADS = 4
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombWarning, Image.DecompressionBombError)
OVERLONG = "\0overlong"  # a NUL byte is refused, so no field can be this


@dataclass(frozen=True)
class Sample:
    """One captioned image; `origin` names the row it came from, such as img_txt.csv:17."""

    sample_id: int
    image: Path
    text: str
    origin: str


@dataclass(frozen=True)
class Source:
    """The samples of a folder. Sample ids are 0 .. n-1 in the order of the files and rows."""

    path: Path
    samples: tuple[Sample, ...]

    def __len__(self) -> int:
        return len(self.samples)

    @cached_property
    def sizes(self) -> NDArray[np.int32]:
        """(n, 2) int32, width and height in pixels of the upright images; from their headers alone."""
        return np.array([upright_size(sample.image) for sample in self.samples], np.int32)

    def sample(self, sample_id: int) -> Sample:
        return self.samples[sample_id]


def read_csv_folder(path: Path, decode_images: bool = True) -> Source:
    """Read every *.csv of `path` and, with `decode_images`, look at every image. Raises DataError listing all faults,
    not just the first."""
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; give the folder that holds the images and their .csv")
    tables = sorted(path.glob("*.csv"))
    if not tables:
        raise DataError(f"{path}: holds no .csv; add one with the columns {','.join(COLUMNS)}, such as img_txt.csv")
    faults: list[str] = []
    rows = [sample for table in tables for sample in read_table(table, faults)]
    total = len(rows) + len(faults)
    if not total:
        raise DataError(f"{path}: its .csv files have no rows; add one row for each image")
    samples = tuple(Sample(number, path / row.image, row.text, row.origin) for number, row in enumerate(rows))
    faults += [*row_faults(path, rows), *(image_faults(path, samples) if decode_images else ())]
    if faults:
        shown = "\n".join(f"  {fault}" for fault in faults[:SHOWN_FAULTS])
        more = f"\n  and {len(faults) - SHOWN_FAULTS} more" if len(faults) > SHOWN_FAULTS else ""
        raise DataError(f"{path}: {len(faults)} of {total} rows are bad; mend or remove them:\n{shown}{more}")
    return Source(path, samples)


def upright_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels as EXIF says the image is to be seen."""
    with Image.open(path) as image:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return (image.height, image.width) if turned else image.size


def count_small(source: Source, side: int) -> int:
    """How many images have a side below `side` pixels; only their headers are read. An unreadable one has none."""
    small = 0
    for sample in source.samples if side else ():
        with contextlib.suppress(*UNREADABLE), Image.open(sample.image) as image:
            small += min(image.size) < side
    return small


def read_table(table: Path, faults: list[str]) -> list[Sample]:
    """The rows of one file, image paths as written; those that cannot be taken apart are added to `faults`.

    `origin` counts the lines of the file, also after blank lines and line ends within quotes. Raises DataError when
    it is no such table.
    """
    try:
        text = table.read_text(encoding="utf-8-sig")
        records = parse_records(text)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{table}: cannot be read as a table ({reason}); write it as CSV in UTF-8") from None
    header = records[0] if records else []
    missing = [column for column in COLUMNS if column not in header]
    if missing:
        raise DataError(
            f"{table}: found the columns {','.join(header)}; needed {','.join(COLUMNS)} (missing {','.join(missing)})"
        )
    image, caption = (header.index(column) for column in COLUMNS)
    rows, line = [], 2
    for fields in records[1:]:
        origin = f"{table.name}:{line}"
        line += 1 + sum(field.count("\n") for field in fields)
        if fields[1] == OVERLONG:
            faults.append(f"{origin}: more than {len(header)} fields; quote a text that holds a comma: {fields[0]}")
        elif any(fields):  # else a blank line
            rows.append(Sample(-1, Path(fields[image]), fields[caption], origin))
    if line <= len(text.rstrip("\n").split("\n")):  # pandas leaves such a row out without a word
        faults.append(f'{table.name}:{line}: a quote (") opened here is never closed')
    return rows


def parse_records(text: str) -> list[list[str]]:
    """All records of a CSV text, the header first. One with too many fields is joined again and marked.

    The header is read as a record because pandas would take an overlong first row's extra fields for an index.
    """
    if "\0" in text:
        raise ValueError("it holds a NUL byte, so it is not text")
    frame = pd.read_csv(
        io.StringIO(text),
        header=None,
        dtype=str,
        keep_default_na=False,
        skip_blank_lines=False,
        engine="python",
        on_bad_lines=lambda fields: [",".join(fields), OVERLONG],
    )
    return [["" if pd.isna(field) else str(field) for field in record] for record in frame.itertuples(index=False)]


def row_faults(folder: Path, rows: list[Sample]) -> Iterator[str]:
    """What is wrong with the rows by themselves."""
    first_use: dict[Path, str] = {}
    root = folder.resolve()
    for row in rows:
        if str(row.image) == ".":
            yield f"{row.origin}: dir is empty"
            continue
        if not row.text.strip():
            yield f"{row.origin}: text is empty ({row.image})"
        if PurePosixPath(row.image).is_absolute() or not (root / row.image).resolve().is_relative_to(root):
            yield f"{row.origin}: {row.image} leaves the folder; give a path below it"
        elif row.image in first_use:
            yield f"{row.origin}: {row.image} is already in {first_use[row.image]}"
        first_use.setdefault(row.image, row.origin)


def image_faults(folder: Path, samples: tuple[Sample, ...]) -> list[str]:
    """What is wrong with the images, each decoded once; paths that leave the folder are not opened."""
    root = folder.resolve()
    distinct = {sample.image: sample for sample in reversed(samples)}
    inside = [
        sample
        for sample in samples
        if distinct[sample.image] is sample and sample.image != folder and sample.image.resolve().is_relative_to(root)
    ]
    with ThreadPoolExecutor(CHECK_THREADS) as pool:
        found = pool.map(image_fault, (sample.image for sample in inside))
    return [f"{sample.origin}: {fault}" for sample, fault in zip(inside, found, strict=True) if fault]


def image_fault(path: Path) -> str | None:
    """What is wrong with one image file, None when it decodes to its end."""
    if not path.exists():
        return f"{path.name} does not exist"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            decode(path)
    except UNREADABLE as error:
        return f"{path.name} is no readable image ({' '.join(str(error).split())})"
    return None
