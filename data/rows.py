"""What a table tells of a sample before anybody has looked at its image."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from data.captions import captions_of

WHOLE_FILE = -1


@dataclass(slots=True)
class Row:
    """One captioned image as it is written down.

    caption: as it is written there, of whatever type; `captions` are taken from it by `check_caption`, none where the
    row is bad. origin: img_txt.csv:17. file: relative to the folder; "" when it must not be opened. offset, length:
    where in the file, as the format's reader takes them. fault: all that is wrong with the row, "" when nothing is.
    """

    caption: object
    origin: str
    file: str
    offset: int = 0
    length: int = WHOLE_FILE
    fault: str = ""
    captions: tuple[str, ...] = ()

    def blame(self, fault: str) -> None:
        """Add a fault."""
        self.fault = f"{self.fault}; {fault}" if self.fault else fault

    def check_caption(self, column: str, where: str = "") -> None:
        """Take the captions that `column` holds, or blame the row for what stands there instead."""
        try:
            self.captions = captions_of(self.caption)
        except ValueError as error:
            self.blame(f"{column} {error}{where}")


def check_rows(folder: Path, rows: list[Row], file_column: str, text_column: str) -> None:
    """Blame rows of a table of image files for what is wrong with them by themselves."""
    first_use: dict[PurePosixPath, str] = {}
    for row in rows:
        if not row.file:
            if not row.fault:
                row.blame(f"{file_column} is empty")
            continue
        row.check_caption(text_column, f" ({row.file})")
        if "\0" in row.file:
            row.blame(f"{file_column} holds a NUL byte")
            row.file = ""
            continue
        name = PurePosixPath(row.file)
        if not is_below(folder, name):
            row.blame(f"{row.file} leaves the folder; give a path below it")
            row.file = ""
        elif name in first_use:
            row.blame(f"{row.file} is already in {first_use[name]}")
        first_use.setdefault(name, row.origin)


def is_below(folder: Path, name: PurePosixPath) -> bool:
    """Whether the file lies within the folder, links followed; those that go round in circles lead nowhere."""
    try:
        return not name.is_absolute() and (folder / name).resolve().is_relative_to(folder.resolve())
    except RuntimeError:
        return False
