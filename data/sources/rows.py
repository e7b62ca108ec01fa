"""Describes what a table says about a sample, before its image is read."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from data.files import printable, shortened
from data.sources.captions import captions_of

WHOLE_FILE = -1


@dataclass(slots=True)
class Row:
    """Holds one captioned image as its table states it. Origin and fault are made printable.

    caption: the table's value, of any type.
    origin: where the row is listed, such as img_txt.csv:17.
    file: path relative to the folder; "" when it must not be opened.
    offset, length: position in the file, as the format's reader takes them.
    fault: all that is wrong with the row; "" when nothing is.
    captions: `check_caption` takes them from `caption`; none if the caption is bad.
    """

    caption: object
    origin: str
    file: str
    offset: int = 0
    length: int = WHOLE_FILE
    fault: str = ""
    captions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.origin, self.fault = printable(self.origin), printable(self.fault)

    def blame(self, fault: str) -> None:
        """Add a fault."""
        self.fault = f"{self.fault}; {printable(fault)}" if self.fault else printable(fault)

    def check_caption(self, column: str, where: str = "") -> None:
        """Take the captions from `column`, or blame the row for the value there."""
        try:
            self.captions = captions_of(self.caption)
        except ValueError as error:
            self.blame(f"{column} {error}{where}")


def check_rows(folder: Path, rows: list[Row], file_column: str, text_column: str) -> None:
    """Blame rows of a table of image files for faults that show without opening the files."""
    folder = folder.resolve()
    first_use: dict[PurePosixPath, str] = {}
    allowed = reach(folder)
    for row in rows:
        if not row.file:
            if not row.fault:
                row.blame(f"{file_column} is empty")
            continue
        shown = shortened(row.file)
        row.check_caption(text_column, f" ({shown})")
        if fault := _name_fault(row.file):
            row.blame(f"{file_column} {fault}")
            row.file = ""
            continue
        name = PurePosixPath(row.file)
        if not is_within(allowed, folder, name):
            row.blame(f"{shown} leaves the folder; give a path below it")
            row.file = ""
        elif name in first_use:
            row.blame(f"{shown} is already in {first_use[name]}")
        first_use.setdefault(name, row.origin)


def _name_fault(name: str) -> str:
    """Return why no file can have that name; "" when one can."""
    if "\0" in name:
        return "holds a NUL byte"
    try:
        os.fsencode(name)
    except UnicodeEncodeError as error:
        return f"holds {name[error.start]!a}, which no file name in {error.encoding} can hold"
    return ""


def reach(folder: Path) -> tuple[Path, ...]:
    """Return the folders below which a folder's files may lie after links are followed.

    The first is the folder itself. A snapshot in Hugging Face's cache (REPOSITORY/snapshots/REVISION) consists of
    links, so its files may also lie among that repository's blobs.
    """
    resolved = folder.resolve()
    for revision in (resolved, *resolved.parents):
        if revision.parent.name == "snapshots" and (blobs := revision.parents[1] / "blobs").is_dir():
            return resolved, blobs
    return (resolved,)


def is_within(allowed: tuple[Path, ...], folder: Path, name: PurePosixPath) -> bool:
    """Return whether a file of the folder, links followed, lies below an allowed place. A circular link does not."""
    try:
        target = (folder / name).resolve()
    except RuntimeError:
        return False
    return not name.is_absolute() and any(target.is_relative_to(place) for place in allowed)


Reader = Callable[[Path, int, int], bytes]


@dataclass(frozen=True)
class Place:
    """Locates an image file's bytes."""

    path: Path
    offset: int
    length: int
