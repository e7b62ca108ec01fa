"""Parquet with the image files' bytes, as Hugging Face stores them: a column `image` and a column `text` or `caption`.

Needs PyArrow (pip install 'vpred[parquet]').
"""

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from data.errors import DataError
from data.rows import Row

CAPTIONS = ("text", "caption")
IMAGE = "image"
KEPT_GROUPS = 4  # row groups in memory: reading one sample reads its whole group


def parquet_rows(folder: Path, files: list[Path]) -> list[Row]:
    """All rows; `offset` is the row in its file. Raises DataError for a file without the columns."""
    rows = []
    for path in files:
        file = _open(path)
        names = file.schema_arrow.names
        caption = next((name for name in CAPTIONS if name in names), None)
        if caption is None or IMAGE not in names:
            raise DataError(f"{path}: found the columns {', '.join(names)}; needed {IMAGE}, and text or caption")
        texts = file.read(columns=[caption]).column(0).to_pylist()
        for number, text in enumerate(texts):
            row = Row(str(text or ""), f"{path.name}:{number}", path.name, number)
            if not row.text.strip():
                row.blame(f"{caption} is empty")
            rows.append(row)
    return rows


def read_cell(path: Path, offset: int, length: int) -> bytes:
    """The image bytes of row `offset`. Raises ValueError when it has none."""
    file = _open(path)
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        if offset < count:
            value = _images(path, group)[offset].as_py()
            content = value.get("bytes") if isinstance(value, dict) else value
            if not isinstance(content, bytes):
                raise ValueError(f"row has no image bytes (found {type(content).__name__})")
            return content
        offset -= count
    raise ValueError("the file has no such row any more")


@lru_cache(KEPT_GROUPS)
def _images(path: Path, group: int) -> Any:
    return _open(path).read_row_group(group, columns=[IMAGE]).column(0)


@lru_cache(KEPT_GROUPS)
def _open(path: Path) -> Any:
    try:
        from pyarrow import ArrowException, OSFile, parquet
    except ImportError:
        raise DataError(f"{path}: reading Parquet needs PyArrow; pip install 'vpred[parquet]'") from None
    try:
        return parquet.ParquetFile(OSFile(os.fsencode(path)))  # a path would have to be UTF-8
    except (ArrowException, OSError) as error:
        raise DataError(f"{path}: no Parquet file ({' '.join(str(error).split())})") from None
