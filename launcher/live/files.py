"""Opens the few files of a run that the server shows: never by a name of the client's choice, never out of the run."""

import os
import re
import stat
from pathlib import Path

from launcher.contract.run_dir import RunDir

_MOST_BYTES = 64 << 20
_TAIL_BYTES = 1 << 17
_PICTURES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}
# Escape sequences of terminals: colours (CSI), titles and links (OSC), and the two-letter ones.
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])")
# Other control characters, and those that turn the direction of writing.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def read_inside(run: RunDir, path: Path, last_bytes: int | None = None) -> bytes | None:
    """Read a regular file that lies in the run directory, also after all links are resolved. None: there is none.

    last_bytes: read the end alone
    """
    try:
        real = path.resolve(strict=True)
        if not real.is_relative_to(run.root.resolve()):
            return None
        # A pipe or a device would block the open, a link put there in the meantime would lead out.
        descriptor = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return None
            if last_bytes is not None:
                file.seek(max(0, status.st_size - last_bytes))
            elif status.st_size > _MOST_BYTES:
                return None
            return file.read(_MOST_BYTES)
    except (OSError, RuntimeError):  # RuntimeError: a loop of links
        return None


def last_lines(run: RunDir, log: Path, count: int) -> list[str]:
    """Return the last lines of a log as plain text, without what would colour or turn it."""
    content = read_inside(run, log, _TAIL_BYTES)
    if content is None:
        return []
    return [plain(line) for line in content.decode(errors="replace").split("\n") if line.strip()][-count:]


def plain(line: str) -> str:
    """Return one line of text as a terminal would leave it: without escape sequences, after the last return."""
    shown = line.rstrip("\r").rpartition("\r")[2]
    return _CONTROLS.sub("\ufffd", _ESCAPES.sub("", shown))


def newest_picture(run: RunDir) -> Path | None:
    """Return the newest picture of RUN/grids, None without one."""
    try:
        with os.scandir(run.grids) as entries:
            found = [
                (entry.stat(follow_symlinks=False).st_mtime_ns, entry.name)
                for entry in entries
                if entry.name.endswith((".png", ".jpg")) and not entry.name.startswith(".")
            ]
    except OSError:
        return None
    return run.grids / max(found)[1] if found else None


def picture(run: RunDir) -> tuple[bytes, str] | None:
    """Return the newest picture and its media type, which its first bytes decide."""
    path = newest_picture(run)
    content = None if path is None else read_inside(run, path)
    kind = next((kind for start, kind in _PICTURES.items() if content and content.startswith(start)), None)
    return (content, kind) if content and kind else None
