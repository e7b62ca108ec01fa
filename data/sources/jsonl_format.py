"""Reads Hugging Face's image folder: a metadata.jsonl with `file_name` and `text` (or `caption`) beside the images."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.files import encoding_fault, read_lines, shortened
from data.sources.rows import Row, check_rows

CAPTIONS = ("text", "caption")


def jsonl_rows(folder: Path, tables: list[Path]) -> list[Row]:
    """Return all rows; rows that are bad by themselves are blamed. Raises DataError: when a file is no text."""
    rows = []
    for table in tables:
        lines = read_lines(table, "JSON lines in UTF-8")
        rows += [_row(line, f"{table.name}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    check_rows(folder, rows, "file_name", "its caption")
    return rows


def _row(line: str, origin: str) -> Row:
    try:
        record = parse_object(line)
    except ValueError as error:
        return Row("", origin, "", fault=f"no JSON ({error})")
    if not isinstance(record.get("file_name"), str):
        return Row("", origin, "", fault='no "file_name"; each line is {"file_name": "a.jpg", "text": "a caption"}')
    caption = caption_of(record, CAPTIONS)
    if caption is None:
        keys = shortened(", ".join(record))
        return Row("", origin, "", fault=f'no "text" or "caption" (found {keys})')
    return Row(caption, origin, record["file_name"])


def parse_object(text: str) -> dict[str, Any]:
    """Parse a JSON object; other JSON gives an empty one.

    Raises ValueError: when the text is not UTF-8 or no JSON, or a key comes twice.
    """
    if fault := encoding_fault(text):
        raise ValueError(fault)
    pairs: list[tuple[str, Any]] = []  # after parsing, those of the outermost object

    def make(inner: list[tuple[str, Any]]) -> dict[str, Any]:
        pairs[:] = inner
        return dict(inner)

    try:
        record = json.loads(text, object_pairs_hook=make)
        json.dumps(record, ensure_ascii=False).encode()  # raises for half of a surrogate pair, which is no character
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(record, dict):
        return {}
    if len(record) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {shortened(name)!r} comes twice")
    return record


def caption_of(record: dict[str, Any], keys: Sequence[str]) -> object:
    """Return the value of the first key that the record has; None without any."""
    return next((record[key] for key in keys if record.get(key) is not None), None)
