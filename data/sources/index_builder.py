"""Makes the index of a folder, and updates it where files differ from it."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from safetensors import SafetensorError

from data.errors import DataError
from data.files import INDEX_NAME, read_file
from data.images.size import Size
from data.sources import stat_process
from data.sources.columns import Columns, string_columns
from data.sources.csv_format import csv_rows
from data.sources.index_file import Index, make_index, read_index, write_index
from data.sources.jsonl_format import jsonl_rows
from data.sources.parquet_format import parquet_rows, read_cell
from data.sources.rows import Place, Reader, Row, is_within, reach
from data.sources.scan import NO_HASH, NO_SIZE, Look, look_at_all
from data.sources.tar_format import tar_rows

logger = logging.getLogger(__name__)
STATS_AT_ONCE = 8
FILES_PER_PROCESS = 16384  # fewer take less time than the start of a process
Key = tuple[str, int, int]  # file, offset, length of an image
JoinedNames = Callable[[int, int], bytes]  # the names of files [first, last), with NUL bytes between them


@dataclass(frozen=True)
class Format:
    """Describes a way to store captioned images.

    tables: name of the files that list them, in lower case, or * and the name's end.
    rows: returns the rows that the tables of a folder list.
    read: returns the bytes of an image, by its file, offset and length.
    """

    tables: str
    rows: Callable[[Path, list[Path]], list[Row]]
    read: Reader = read_file


# A folder has the first format of which it holds a table.
FORMATS = {
    "csv": Format("*.csv", csv_rows),
    "jsonl": Format("metadata.jsonl", jsonl_rows),
    "webdataset": Format("*.tar", tar_rows),
    "parquet": Format("*.parquet", parquet_rows, read_cell),
}


def index_paths(path: Path) -> list[Path]:
    """Return where an index may be kept: in the folder itself, and in the user's cache.

    The cache serves users who may not read or write in the folder.
    """
    inside = [path / INDEX_NAME]
    try:
        home = Path.home()
    except RuntimeError:  # the user has no passwd entry, as in some containers
        return inside
    name = xxhash.xxh3_128_hexdigest(os.fsencode(path.resolve()))
    return [*inside, home / ".cache" / "vpred" / f"{name}.safetensors"]


def find_format(path: Path) -> tuple[str, list[Path]]:
    """Return the name of the folder's format, and its tables.

    Raises DataError: when the folder cannot be listed, holds no table, or a table is a link that leaves it.
    """
    try:
        if not path.is_dir():
            raise DataError(f"{path}: no such folder; give the folder that holds the images and their .csv")
        # Not glob, which takes a second for a million files.
        names = os.listdir(path)  # noqa: PTH208
    except OSError as error:
        raise DataError(f"{path}: cannot be listed ({error.strerror}); let this user read the folder") from None
    ends = tuple(form.tables.lstrip("*") for form in FORMATS.values())
    # Hidden files are no tables: macOS leaves ._img_txt.csv beside img_txt.csv.
    names = sorted(name for name in names if name.lower().endswith(ends) and not name.startswith("."))
    for format_name, form in FORMATS.items():
        if tables := [path / name for name in names if fnmatchcase(name.lower(), form.tables)]:
            _require_within(path, tables)
            return format_name, tables
    raise DataError(
        f"{path}: holds no .csv; add one with the columns dir,text, such as img_txt.csv "
        "(or metadata.jsonl, WebDataset *.tar, *.parquet)"
    )


def _require_within(path: Path, tables: Sequence[Path]) -> None:
    allowed = reach(path)
    for table in tables:
        if table.is_symlink() and not is_within(allowed, path, PurePosixPath(table.name)):
            raise DataError(f"{table}: is a link that leaves the folder; give the folder that it leads to, or copy it")


def up_to_date(path: Path, workers: int | None = None) -> Index:
    """Return the folder's index. If files differ from it, it is updated and written to the first writable index path.

    Raises DataError: when the folder cannot be read.
    """
    name, tables = find_format(path)
    kept = index_paths(path)
    old = []
    for file in kept:
        index = read_index(file)
        if index is not None and index.format == name:
            if is_fresh(index, path, tables):
                return index
            old.append(index)
    index = build(path, name, tables, old, workers)
    refusals = []
    for file in kept:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            return write_index(index, file)
        except (OSError, SafetensorError) as error:
            refusals.append(f"{file}: {error}")
    refused = "; ".join(refusals)
    logger.warning("the index of %s cannot be kept (%s): the next start looks at all images again", path, refused)
    return index


def checked_index(path: Path, digest: str) -> Index | None:
    """Return the index with this digest, which another process has just updated; None when this process finds none."""
    indices = (read_index(file) for file in index_paths(path))
    return next((index for index in indices if index is not None and index.digest == digest), None)


def is_fresh(index: Index, path: Path, tables: Sequence[Path]) -> bool:
    """Return whether all files are as they were when the index was made."""
    if [index.string("name", row) for row in range(index.tables)] != [table.name for table in tables]:
        return False

    def names(first: int, last: int) -> bytes:
        # The index has the names in UTF-8, but a file system may use another encoding.
        return os.fsencode(index.joined("name", first, last).decode(errors="surrogateescape"))

    sizes, times = _stats(path, len(index.columns["file_bytes"]), names)
    return np.array_equal(sizes, index.columns["file_bytes"]) and np.array_equal(times, index.columns["file_mtime_ns"])


def stat_files(path: Path, names: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return sizes in bytes and modification times in ns, each (f,) int64; -1 where there is no file."""
    return _stats(path, len(names), lambda first, last: os.fsencode("\0".join(names[first:last])))


def _stats(path: Path, count: int, joined: JoinedNames) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    per_process = max(FILES_PER_PROCESS, -(-count // STATS_AT_ONCE))
    slices = [(first, min(first + per_process, count)) for first in range(0, count, per_process)]
    # A network file system answers many requests at once.
    with ThreadPoolExecutor(STATS_AT_ONCE) as pool:
        found = list(pool.map(lambda each: _stat_slice(path, joined(*each), apart=len(slices) > 1), slices))
    stats = np.concatenate([*found, np.empty((0, 2), np.int64)])
    return stats[:, 0], stats[:, 1]


def _stat_slice(path: Path, names: bytes, *, apart: bool) -> NDArray[np.int64]:
    """Return size in bytes and modification time in ns, (names, 2) int64. apart: use a separate process."""
    if apart:
        argv = [sys.executable, "-I", "-S", stat_process.__file__, str(path)]
        found = subprocess.run(argv, input=names, stdout=subprocess.PIPE, check=True).stdout
    else:
        found = stat_process.stat_files(str(path), names.split(b"\0")).tobytes()
    return np.frombuffer(found, np.int64).reshape(-1, 2)


def build(path: Path, name: str, tables: list[Path], old: Sequence[Index], workers: int | None) -> Index:
    """List the rows and look at the images. `old` indexes answer for unchanged files.

    Raises DataError: when a table cannot be read.
    """
    for table in tables:
        if not table.is_file():  # opening a FIFO would block forever
            raise DataError(f"{table}: is no regular file; remove or rename it")
    rows = FORMATS[name].rows(path, tables)
    names = list(dict.fromkeys([*(table.name for table in tables), *(row.file for row in rows if row.file)]))
    number_of = {each: number for number, each in enumerate(names)}
    stats = stat_files(path, names)
    known = {key: look for index in old for key, look in _known(index, names, stats)}
    keys = list(dict.fromkeys((row.file, row.offset, row.length) for row in rows if row.file))
    missing = [key for key in keys if key not in known]
    places = [Place(path / file, offset, length) for file, offset, length in missing]
    known |= zip(missing, look_at_all(FORMATS[name].read, places, workers), strict=True)
    return make_index(name, len(tables), build_columns(rows, known, number_of, stats))


def _known(
    old: Index, names: Sequence[str], stats: tuple[NDArray[np.int64], NDArray[np.int64]]
) -> Iterator[tuple[Key, Look]]:
    """Yield what the old index knows of images in unchanged files. Bad images are left out, to be looked at again."""
    now = {name: (size, mtime) for name, size, mtime in zip(names, *(each.tolist() for each in stats), strict=True)}
    columns = {name: array.tolist() for name, array in old.columns.items() if name not in ("text", "origin", "fault")}
    then = zip(columns["file_bytes"], columns["file_mtime_ns"], strict=True)
    old_names = old.strings("name")
    unchanged = [now.get(name) == stat for name, stat in zip(old_names, then, strict=True)]
    for row in np.flatnonzero(~old.is_bad).tolist():
        file = columns["file"][row]
        if unchanged[file]:
            key = (old_names[file], columns["offset"][row], columns["length"][row])
            width, height = columns["size"][row]
            yield key, Look(Size(height, width), bytes(columns["content_hash"][row]), "")


def _as_written(caption: object) -> str:
    """Return the stand-in for a bad row's captions: its text, if it has one, as in the digests of earlier versions."""
    return caption.encode(errors="ignore").decode() if isinstance(caption, str) else ""


def build_columns(
    rows: Sequence[Row],
    looks: dict[Key, Look],
    number_of: dict[str, int],
    stats: tuple[NDArray[np.int64], NDArray[np.int64]],
) -> Columns:
    """Return the columns of the rows and of what was found at each. Rows whose image is bad are blamed."""
    nothing = Look(NO_SIZE, NO_HASH, "")
    found = [looks.get((row.file, row.offset, row.length), nothing) for row in rows]
    for row, each in zip(rows, found, strict=True):
        if each.fault:
            row.blame(each.fault)
    hashes = np.frombuffer(b"".join(each.content_hash for each in found), np.uint8).reshape(-1, 16)
    columns: dict[str, NDArray[Any]] = {
        "file": np.array([number_of.get(row.file, stat_process.ABSENT) for row in rows], np.int32),
        "offset": np.array([row.offset for row in rows], np.int64),
        "length": np.array([row.length for row in rows], np.int64),
        "size": np.array([(each.size.width, each.size.height) for each in found], np.int32).reshape(-1, 2),
        "content_hash": hashes,
        "file_bytes": stats[0],
        "file_mtime_ns": stats[1],
    }
    captions = [row.captions or (_as_written(row.caption),) for row in rows]
    if any(len(each) != 1 for each in captions):
        columns["caption_ends"] = np.cumsum([len(each) for each in captions], dtype=np.int64)
    strings = {"text": [text for each in captions for text in each], "origin": [row.origin for row in rows]}
    strings |= {"fault": [row.fault for row in rows], "name": list(number_of)}
    for name, values in strings.items():
        columns |= string_columns(name, values)
    return columns
