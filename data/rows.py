"""What a table tells of a sample before anybody has looked at its image."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from data.files import encoding_fault, printable, shortened

WHOLE_FILE = -1


@dataclass(slots=True)
class Row:
    """One captioned image as it is written down.

    origin: img_txt.csv:17. file: relative to the folder; "" when it must not be opened. offset, length: where in the
    file, as the format's reader takes them. fault: all that is wrong with the row, "" when nothing is. Origin and
    fault are made printable.
    """

    text: str
    origin: str
    file: str
    offset: int = 0
    length: int = WHOLE_FILE
    fault: str = ""

    def __post_init__(self) -> None:
        self.origin, self.fault = printable(self.origin), printable(self.fault)

    def blame(self, fault: str) -> None:
        """Add a fault."""
        self.fault = f"{self.fault}; {printable(fault)}" if self.fault else printable(fault)


def check_captions(rows: Iterable[Row]) -> None:
    """Blame rows whose caption is no text that can be kept, and take it away."""
    for row in rows:
        fault = "holds a NUL byte, so it is not text" if "\0" in row.text else encoding_fault(row.text)
        if fault:
            row.blame(f"its caption {'is ' if fault.startswith('not') else ''}{fault}")
            row.text = ""


def check_rows(folder: Path, rows: list[Row], file_column: str, text_column: str) -> None:
    """Blame rows of a table of image files for what is wrong with them by themselves."""
    folder = folder.resolve()
    first_use: dict[PurePosixPath, str] = {}
    for row in rows:
        if not row.file:
            if not row.fault:
                row.blame(f"{file_column} is empty")
            continue
        shown = shortened(row.file)
        if not row.text.strip():
            row.blame(f"{text_column} is empty ({shown})")
        if fault := _name_fault(row.file):
            row.blame(f"{file_column} {fault}")
            row.file = ""
            continue
        name = PurePosixPath(row.file)
        if not is_below(folder, name):
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


def is_below(folder: Path, name: PurePosixPath) -> bool:
    """Whether the file lies within the resolved folder, links followed; those that go round in circles lead nowhere."""
    try:
        return not name.is_absolute() and (folder / name).resolve().is_relative_to(folder)
    except RuntimeError:
        return False
