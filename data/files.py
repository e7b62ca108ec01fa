"""Handles files that other software wrote: opens them, decodes their text, and prints their names."""

import codecs
import io
import os
import stat
from pathlib import Path
from typing import BinaryIO

from data.errors import DataError

ENCODINGS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
SHOWN_CHARACTERS = 200


def open_file(path: Path) -> BinaryIO:
    """Open a file for reading.

    Raises OSError: when it cannot be opened, or is no regular file. Opening a FIFO would block forever, and opening a
    device may have side effects.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # `open` itself refuses a folder
        raise OSError("no regular file")
    # O_NONBLOCK: if a FIFO has taken the file's place since the check, this does not block.
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))


def read_file(path: Path, offset: int = 0, length: int = -1) -> bytes:
    """Read `length` bytes from `offset`; a negative length reads to the end. Raises OSError as `open_file`."""
    with open_file(path) as file:
        file.seek(offset)
        return file.read(length)


def decode_text(content: bytes) -> str:
    """Decode a file's text: UTF-8, or the UTF-16 that its byte order mark declares.

    Bytes that are not UTF-8 become surrogates (PEP 383), which `encoding_fault` finds.
    Raises ValueError: when the content is not the UTF-16 that it declares.
    """
    for mark, encoding in ENCODINGS.items():
        if content.startswith(mark):
            return content[len(mark) :].decode(encoding, "surrogateescape" if encoding == "utf-8" else "strict")
    return content.decode(errors="surrogateescape")


def read_lines(table: Path, layout: str) -> list[str]:
    """Return the lines of a text file. LF, CR LF and CR become "\\n". Raises DataError: when it is no text."""
    try:
        return io.StringIO(decode_text(read_file(table)), newline=None).readlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{table}: cannot be read as a table ({reason_of(error)}); write it as {layout}") from None


def encoding_fault(text: str) -> str:
    """Return what keeps a text from being written as UTF-8; "" when nothing does."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"not UTF-8 (found {printable(text[error.start])})"
    return ""


def printable(text: str) -> str:
    """Return the text as one line for any UTF-8 stream: control characters and bytes that are not UTF-8 are escaped."""
    return text if text.isprintable() else "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":  # a byte that was not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def shortened(text: str) -> str:
    """Return the first SHOWN_CHARACTERS of a text, for a message."""
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def reason_of(error: BaseException) -> str:
    """Return why something failed, in one short line."""
    told = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return shortened(" ".join(told.split())) or type(error).__name__


INDEX_NAME = ".vpred_index.safetensors"
