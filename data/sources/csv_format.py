"""Reads MindONE's layout: a folder of images and any number of *.csv with the columns `dir,text`."""

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from data.errors import DataError
from data.files import printable, read_lines, shortened
from data.images.decode import SUFFIXES
from data.sources.rows import Row, check_rows

COLUMNS = ("dir", "text")
# It finds an image file's name as a field beside another field. If a caption's line has one, the line is a row that a
# stray quote has swallowed.
IMAGE = rf'[^,"]*\.(?:{"|".join(SUFFIXES)})'
NAMES_IMAGE = re.compile(rf"^{IMAGE},|,(?! ){IMAGE}(?:,|$)", re.IGNORECASE)
CLOSE_IT = 'close it, or write each quote within a quoted text twice ("")'


def csv_rows(folder: Path, tables: list[Path]) -> list[Row]:
    """Return all rows; rows that are bad by themselves are blamed. Raises DataError: when a file is no such table."""
    rows = [row for table in tables for row in read_table(table)]
    check_rows(folder, rows, *COLUMNS)
    return rows


def read_table(table: Path) -> list[Row]:
    """Return the rows of one file: one for each line that is not blank and not inside a multi-line quoted text.

    Rows that cannot be parsed are blamed and name no image. `origin` holds the line number.
    Raises DataError: when the file is no such table.
    """
    lines = read_lines(table, "CSV in UTF-8")
    for number, line in enumerate(lines, 1):
        if "\0" in line:
            raise DataError(f"{table}:{number}: holds a NUL byte, so it is not text; write it as CSV in UTF-8")
    found = records(lines)
    header = _header(table, *next(found, (1, "the table is empty; begin it with the line dir,text")))
    image, caption = (header.index(column) for column in COLUMNS)
    rows = []
    for number, fields in found:
        origin = f"{table.name}:{number}"
        if isinstance(fields, str):
            rows.append(Row("", origin, "", fault=fields))
        elif len(fields) > len(header):
            fault = f"more than {len(header)} fields; quote a text that holds a comma: {shortened(','.join(fields))}"
            rows.append(Row("", origin, "", fault=fault))
        else:
            short = len(fields) < len(header) and max(image, caption) < len(fields)
            fault = f"{len(fields)} fields where the header has {len(header)}" if short else ""
            fields += [""] * (len(header) - len(fields))
            rows.append(Row(fields[caption], origin, fields[image], fault=fault))
    return rows


def _header(table: Path, number: int, fields: list[str] | str) -> list[str]:
    """Return the names of the columns. Raises DataError: when a needed column is missing or comes twice."""
    if isinstance(fields, str):
        raise DataError(f"{table}:{number}: {fields}")
    wrong = [f"missing {column}" for column in COLUMNS if column not in fields]
    wrong += [f"{column} comes {fields.count(column)} times" for column in COLUMNS if fields.count(column) > 1]
    if wrong:
        shown = printable(shortened(",".join(fields)))
        raise DataError(f"{table}: found the columns {shown}; needed {','.join(COLUMNS)} ({', '.join(wrong)})")
    return fields


def records(lines: Sequence[str]) -> Iterator[tuple[int, list[str] | str]]:
    """Yield (line number, fields) of each record, or (line number, fault). Blank lines are skipped.

    The line number is that of the record's first line, counted from 1. A bad record is its first line alone, so that a
    stray quote spoils no other rows.
    """
    csv.field_size_limit(max(csv.field_size_limit(), sum(map(len, lines))))  # process-wide, so only ever raised
    first = 0
    while first < len(lines):
        begin = first
        reader = csv.reader(map(lines.__getitem__, range(begin, len(lines))), strict=True)
        try:
            for fields in reader:
                end = begin + reader.line_num
                if any(map(NAMES_IMAGE.search, lines[first + 1 : end])):
                    raise csv.Error("rows within a text")
                if lines[first].strip():
                    yield first + 1, fields
                first = end
        except csv.Error as error:
            yield first + 1, _fault(str(error), begin + reader.line_num - first)
            first += 1


def _fault(error: str, lines: int) -> str:
    """Return what is wrong with a record of `lines` lines. error: the message of `csv`."""
    if error == "unexpected end of data":
        return f'a quote (") opened here is never closed; {CLOSE_IT}'
    if lines > 1:
        return f'a quote (") opened here is closed {lines - 1} lines below, beyond other rows; {CLOSE_IT}'
    return 'text follows a closing quote ("); write each quote within a quoted text twice ("")'
