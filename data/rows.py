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
    allowed = reach(folder)
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
        if not is_within(allowed, folder, name):
            row.blame(f"{row.file} leaves the folder; give a path below it")
            row.file = ""
        elif name in first_use:
            row.blame(f"{row.file} is already in {first_use[name]}")
        first_use.setdefault(name, row.origin)


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
