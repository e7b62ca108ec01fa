"""Hugging Face's image folder: a metadata.jsonl with `file_name` and `text` (or `caption`) beside the images."""

import json
from pathlib import Path

from data.errors import DataError
from data.rows import Row, check_rows

CAPTIONS = ("text", "caption")


def jsonl_tables(folder: Path) -> list[Path]:
    return sorted(folder.glob("metadata.jsonl"))


def jsonl_rows(folder: Path, tables: list[Path]) -> list[Row]:
    """All rows, those that are bad in themselves blamed. Raises DataError when a file is no text."""
    rows = []
    for table in tables:
        try:
            lines = table.read_text(encoding="utf-8-sig").split("\n")
        except (OSError, ValueError) as error:
            raise DataError(f"{table}: cannot be read ({error}); write it as JSON lines in UTF-8") from None
        rows += [_row(line, f"{table.name}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    check_rows(folder, rows, "file_name", "its caption")
    return rows


def _row(line: str, origin: str) -> Row:
    try:
        record = json.loads(line)
        json.dumps(record, ensure_ascii=False).encode()  # half of a surrogate pair is no character
    except ValueError as error:
        return Row("", origin, "", fault=f"no JSON ({error})")
    if not isinstance(record, dict) or not isinstance(record.get("file_name"), str):
        return Row("", origin, "", fault='no "file_name"; each line is {"file_name": "a.jpg", "text": "a caption"}')
    caption = next((record[key] for key in CAPTIONS if record.get(key) is not None), None)
    if caption is None:
        keys = ", ".join(record)
        return Row("", origin, "", fault=f'no "text" or "caption" that is a string (found {keys})')
    return Row(caption, origin, record["file_name"])
