"""Files that others wrote: how they are opened, what encodes their text, and how their names are shown."""

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
    """Opened for reading. Raises OSError, also for what is no regular file: a FIFO would make its reader wait for ever,
    and opening a device may do something."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # `open` itself refuses a folder
        raise OSError("no regular file")
    # Should a FIFO have taken the file's place since, this does not wait.
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))


def read_file(path: Path, offset: int = 0, length: int = -1) -> bytes:
    """`length` bytes from `offset`, or with a negative length all of the file. Raises OSError as `open_file`."""
    with open_file(path) as file:
        file.seek(offset)
        return file.read(length)


def decode_text(content: bytes) -> str:
    """The text of a file: UTF-8, or the UTF-16 that its byte order mark declares. Bytes that are not UTF-8 come as
    surrogates (PEP 383), which `encoding_fault` finds. Raises ValueError when it is not the UTF-16 that it declares.
    """
    for mark, encoding in ENCODINGS.items():
        if content.startswith(mark):
            return content[len(mark) :].decode(encoding, "surrogateescape" if encoding == "utf-8" else "strict")
    return content.decode(errors="surrogateescape")


def read_lines(table: Path, layout: str) -> list[str]:
    """The lines of a text file with their ends as "\\n", whether LF, CR LF or CR. Raises DataError."""
    try:
        return io.StringIO(decode_text(read_file(table)), newline=None).readlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{table}: cannot be read as a table ({reason_of(error)}); write it as {layout}") from None


def encoding_fault(text: str) -> str:
    """What keeps a text from being written as UTF-8; "" when nothing does."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"not UTF-8 (found {printable(text[error.start])})"
    return ""


def printable(text: str) -> str:
    """The text in one line that every UTF-8 stream takes: control characters and bytes that are not UTF-8 escaped."""
    return text if text.isprintable() else "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":  # a byte that was not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def shortened(text: str) -> str:
    """As much of a text as a message shows."""
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def reason_of(error: BaseException) -> str:
    """Why something failed, in one short line."""
    told = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return shortened(" ".join(told.split())) or type(error).__name__


INDEX_NAME = ".vpred_index.safetensors"
