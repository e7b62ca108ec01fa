"""Reads Parquet with image bytes, as Hugging Face stores it: a column `image` and a column `text` or `caption`.

A list of strings holds several captions of one image. This needs PyArrow (pip install 'vpred[parquet]').
"""

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from data.errors import DataError
from data.sources.rows import Row

CAPTIONS = ("text", "caption")
IMAGE = "image"
KEPT_GROUPS = 4  # row groups in memory: reading one sample reads its full group


def parquet_rows(folder: Path, files: list[Path]) -> list[Row]:
    """Return all rows; `offset` is the row's number in its file.

    Raises DataError: when a file is no Parquet file, is damaged or lacks the columns.
    """
    return [row for path in files for row in _file_rows(path)]


def _file_rows(path: Path) -> Iterator[Row]:
    if not path.is_file():
        raise DataError(f"{path}: is no regular file; remove it, or put the table in its place")
    file = _open(path, path.stat().st_mtime_ns)
    try:
        names = file.schema_arrow.names
    except UnicodeDecodeError:
        raise DataError(
            f"{path}: the name of a column is not UTF-8; write the table again with {IMAGE} and text"
        ) from None
    caption = next((name for name in CAPTIONS if name in names), None)
    if caption is None or IMAGE not in names:
        raise DataError(f"{path}: found the columns {', '.join(names)}; needed {IMAGE}, and text or caption")
    if twice := [name for name in (IMAGE, caption) if names.count(name) > 1]:
        raise DataError(f"{path}: has the column {twice[0]} more than once; keep one")
    number = 0
    for cells in _cells(path, file, caption):
        for cell in cells:
            row = Row(None, f"{path.name}:{number}", path.name, number)
            try:
                row.caption = cell.as_py()
            except Exception as error:  # any error of PyArrow about one cell is a fault of that row
                row.blame(f"{caption} cannot be read ({_reason(error)})")
            else:
                row.check_caption(caption)
            yield row
            number += 1
    if number != file.metadata.num_rows:
        raise DataError(
            f"{path}: has {number} of the {file.metadata.num_rows} rows that it declares; write the file again"
        )


def _cells(path: Path, file: Any, column: str) -> Iterator[Any]:
    """Yield the column, an array at a time. Raises DataError: when the file is damaged."""
    from pyarrow import ArrowException

    try:
        for batch in file.iter_batches(columns=[column]):
            yield batch.column(0)
    except (ArrowException, OSError, ValueError, MemoryError) as error:
        raise DataError(
            f"{path}: its column {column} cannot be read ({_reason(error)}); write the file again"
        ) from None


def read_cell(path: Path, offset: int, length: int) -> bytes:
    """Return the image bytes of row `offset`. Raises ValueError: when it has none, or there is no such row."""
    written_ns = path.stat().st_mtime_ns
    file = _open(path, written_ns)
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        if offset < count:
            value = _images(path, written_ns, group)[offset].as_py()
            content = value.get("bytes") if isinstance(value, dict) else value
            if not isinstance(content, bytes):
                raise ValueError(f"row has no image bytes (found {type(content).__name__})")
            return content
        offset -= count
    raise ValueError("the file no longer has this row")


@lru_cache(KEPT_GROUPS)
def _images(path: Path, written_ns: int, group: int) -> Any:
    """Read the column of images. If it is a struct, only `bytes` is read: `path` may be in any encoding."""
    file = _open(path, written_ns)
    kind = file.schema_arrow.field(IMAGE).type
    parts = [kind.field(number).name for number in range(kind.num_fields)]
    return file.read_row_group(group, columns=[f"{IMAGE}.bytes" if "bytes" in parts else IMAGE]).column(0)


@lru_cache(KEPT_GROUPS)
def _open(path: Path, written_ns: int) -> Any:
    """Open a file, cached by path and modification time, so that a replaced file is read in its new version."""
    try:
        from pyarrow import ArrowException, OSFile, parquet
    except ImportError:
        raise DataError(f"{path}: reading Parquet needs PyArrow; pip install 'vpred[parquet]'") from None
    try:
        return parquet.ParquetFile(OSFile(os.fsencode(path)))  # ParquetFile needs a path in UTF-8
    except (ArrowException, OSError, ValueError, MemoryError) as error:  # names in GBK, or sizes from damaged bytes
        raise DataError(f"{path}: is no Parquet file ({_reason(error)}); write it again") from None


def _reason(error: Exception) -> str:
    """Return the message of a PyArrow error as one line."""
    return " ".join(str(error).split()) or type(error).__name__
