"""MindONE's layout: a folder of images and any number of *.csv with the columns `dir,text`."""

import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pandas as pd
from PIL import Image

from data.errors import DataError
from data.transforms import decode

COLUMNS = ("dir", "text")
SHOWN_FAULTS = 20
CHECK_THREADS = 4


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

    def sample(self, sample_id: int) -> Sample:
        return self.samples[sample_id]


def read_csv_folder(path: Path) -> Source:
    """Read every *.csv of `path` and look at every image. Raises DataError listing all faults, not just the first."""
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; give the folder that holds the images and their .csv")
    tables = sorted(path.glob("*.csv"))
    if not tables:
        raise DataError(f"{path}: holds no .csv; add one with the columns {','.join(COLUMNS)}, such as img_txt.csv")
    rows = [sample for table in tables for sample in read_table(table)]
    if not rows:
        raise DataError(f"{path}: its .csv files have no rows; add one row for each image")
    samples = tuple(Sample(number, path / row.image, row.text, row.origin) for number, row in enumerate(rows))
    faults = [*row_faults(path, rows), *image_faults(path, samples)]
    if faults:
        shown = "\n".join(f"  {fault}" for fault in faults[:SHOWN_FAULTS])
        more = f"\n  and {len(faults) - SHOWN_FAULTS} more" if len(faults) > SHOWN_FAULTS else ""
        raise DataError(f"{path}: {len(faults)} of {len(rows)} rows are bad; mend or remove them:\n{shown}{more}")
    return Source(path, samples)


def read_table(table: Path) -> list[Sample]:
    """The rows of one file, image paths as written. Raises DataError when it is no such table."""
    try:
        frame = pd.read_csv(table, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{table}: cannot be read as a table ({reason}); write it as CSV in UTF-8") from None
    missing = [column for column in COLUMNS if column not in frame.columns]
    if missing:
        raise DataError(
            f"{table}: found the columns {','.join(map(str, frame.columns))}; "
            f"needed {','.join(COLUMNS)} (missing {','.join(missing)})"
        )
    return [
        Sample(-1, Path(image), text, f"{table.name}:{line}")
        for line, (image, text) in enumerate(zip(frame["dir"], frame["text"], strict=True), start=2)
    ]


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
    except (
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombWarning,
        Image.DecompressionBombError,
    ) as error:
        return f"{path.name} is no readable image ({' '.join(str(error).split())})"
    return None
