"""What a table tells of a sample before anybody has looked at its image."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from data.files import printable, shortened
from data.sources.captions import captions_of

WHOLE_FILE = -1


@dataclass(slots=True)
class Row:
    """One captioned image as it is written down.

    caption: as it is written there, of whatever type; `captions` are taken from it by `check_caption`, none where the
    row is bad. origin: img_txt.csv:17. file: relative to the folder; "" when it must not be opened. offset, length:
    where in the file, as the format's reader takes them. fault: all that is wrong with the row, "" when nothing is.
    Origin and fault are made printable.
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
        """Take the captions that `column` holds, or blame the row for what stands there instead."""
        try:
            self.captions = captions_of(self.caption)
        except ValueError as error:
            self.blame(f"{column} {error}{where}")


def check_rows(folder: Path, rows: list[Row], file_column: str, text_column: str) -> None:
    """Blame rows of a table of image files for what is wrong with them by themselves."""
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
    """Why no file can have that name; "" when one can."""
    if "\0" in name:
        return "holds a NUL byte"
    try:
        os.fsencode(name)
    except UnicodeEncodeError as error:
        return f"holds {name[error.start]!a}, which no file name has where names are in {error.encoding}"
    return ""


def reach(folder: Path) -> tuple[Path, ...]:
    """Where the files of a folder may lie, links followed: below it and, of a snapshot in Hugging Face's cache
    (REPOSITORY/snapshots/REVISION, full of links), among that repository's blobs."""
    resolved = folder.resolve()
    for revision in (resolved, *resolved.parents):
        if revision.parent.name == "snapshots" and (blobs := revision.parents[1] / "blobs").is_dir():
            return resolved, blobs
    return (resolved,)


def is_within(allowed: tuple[Path, ...], folder: Path, name: PurePosixPath) -> bool:
    """Whether a file of the folder lies where it may, links followed; those that go round in circles lead nowhere."""
    try:
        target = (folder / name).resolve()
    except RuntimeError:
        return False
    return not name.is_absolute() and any(target.is_relative_to(place) for place in allowed)


Reader = Callable[[Path, int, int], bytes]


@dataclass(frozen=True)
class Place:
    """Where an image file's bytes are."""

    path: Path
    offset: int
    length: int
