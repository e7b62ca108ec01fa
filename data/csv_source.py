"""MindONE's layout: a folder of images and any number of *.csv with the columns `dir,text`."""

import io
import os
from pathlib import Path

from data.errors import DataError
from data.rows import Row, check_rows

COLUMNS = ("dir", "text")
OVERLONG = "\0overlong"  # a NUL byte is refused, so no field can be this


def csv_tables(folder: Path) -> list[Path]:
    # Not by glob, which takes a second for a million files.
    return sorted(folder / name for name in os.listdir(folder) if name.endswith(".csv"))  # noqa: PTH208


def csv_rows(folder: Path, tables: list[Path]) -> list[Row]:
    """All rows, those that are bad in themselves blamed. Raises DataError when a file is no such table."""
    rows = [row for table in tables for row in read_table(table)]
    check_rows(folder, rows, *COLUMNS)
    return rows


def read_table(table: Path) -> list[Row]:
    """The rows of one file; those that cannot be taken apart are blamed and name no image.

    `origin` counts the lines of the file, also after blank lines and line ends within quotes. Raises DataError when
    it is no such table.
    """
    try:
        text = table.read_text(encoding="utf-8-sig")
        records = parse_records(text)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{table}: cannot be read as a table ({reason}); write it as CSV in UTF-8") from None
    header = records[0] if records else []
    missing = [column for column in COLUMNS if column not in header]
    if missing:
        raise DataError(
            f"{table}: found the columns {','.join(header)}; needed {','.join(COLUMNS)} (missing {','.join(missing)})"
        )
    image, caption = (header.index(column) for column in COLUMNS)
    rows, line = [], 2
    for fields in records[1:]:
        origin = f"{table.name}:{line}"
        line += 1 + sum(field.count("\n") for field in fields)
        if fields[1] == OVERLONG:
            fault = f"more than {len(header)} fields; quote a text that holds a comma: {fields[0]}"
            rows.append(Row("", origin, "", fault=fault))
        elif any(fields):  # else a blank line
            rows.append(Row(fields[caption], origin, fields[image]))
    if line <= len(text.rstrip("\n").split("\n")):  # pandas leaves such a row out without a word
        rows.append(Row("", f"{table.name}:{line}", "", fault='a quote (") opened here is never closed'))
    return rows


def parse_records(text: str) -> list[list[str]]:
    """All records of a CSV text, the header first. One with too many fields is joined again and marked.

    The header is read as a record because pandas would take an overlong first row's extra fields for an index.
    """
    if "\0" in text:
        raise ValueError("it holds a NUL byte, so it is not text")
    import pandas as pd  # takes a quarter of a second, and only a folder that has changed is read

    frame = pd.read_csv(
        io.StringIO(text),
        header=None,
        dtype=str,
        keep_default_na=False,
        skip_blank_lines=False,
        engine="python",
        on_bad_lines=lambda fields: [",".join(fields), OVERLONG],
    )
    return [["" if pd.isna(field) else str(field) for field in record] for record in frame.itertuples(index=False)]
