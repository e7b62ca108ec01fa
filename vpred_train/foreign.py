"""What others wrote: files that are regular ones, numbers that are finite, and JSON that is read through a model.

A model of foreign JSON derives from `Foreign`, which ignores what it does not name. Every fault is one line: where, the
key, what was found and what to do.
"""

import argparse
import json
import math
import stat
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from launcher.contract.config import ConfigError
from launcher.contract.config_errors import mistakes

MOST_SHOWN = 300
MOST_TEXT_BYTES = 64 << 20  # the vocabulary and index files of published folders have a few MB


class Foreign(BaseModel):
    """A part of a document that other programs write. Strict: "96" is no int, 1.5 neither, but 1 is a float."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)


Model = TypeVar("Model", bound=BaseModel)


def require_regular(path: Path) -> None:
    """Raise ConfigError for a device, a pipe or a socket, which may never end; OSError when there is nothing."""
    try:
        mode = path.stat().st_mode
    except ValueError:  # a NUL in the name
        raise ConfigError(f"{printable(str(path))}: is no path; give a file") from None
    if not stat.S_ISREG(mode):
        kinds = ((stat.S_ISDIR, "folder"), (stat.S_ISFIFO, "pipe"), (stat.S_ISSOCK, "socket"))
        kind = next((name for test, name in kinds if test(mode)), "device")
        raise ConfigError(f"{path}: is a {kind}, not a regular file; give a file")


def read_document(model: type[Model], path: Path, remedy: str) -> Model | None:
    """The JSON file `path` as `model`; None when there is no such file. Raises ConfigError."""
    try:
        require_regular(path)
        with path.open("rb") as file:
            text = file.read(MOST_TEXT_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None
    if len(text) > MOST_TEXT_BYTES:
        raise ConfigError(f"{path}: is larger than {MOST_TEXT_BYTES:,} bytes; {remedy}")
    return parsed(model, text, str(path), remedy)


def parsed(model: type[Model], text: str | bytes, where: str, remedy: str) -> Model:
    """The JSON `text`, which stands in `where`, as `model`. Raises ConfigError."""
    try:
        found = json.loads(text, object_pairs_hook=_once_each)
    except RecursionError:
        raise ConfigError(f"{where}: is JSON of too many brackets within brackets; {remedy}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: is no JSON ({printable(str(error))}); {remedy}") from None
    except ValueError as error:  # a key twice, a number of thousands of digits
        raise ConfigError(f"{where}: {printable(str(error))}; {remedy}") from None
    return validated(model, found, where, remedy)


def validated(model: type[Model], value: Any, where: str, remedy: str) -> Model:
    """The `value` of JSON, which stands in `where`, as `model`. Raises ConfigError naming the first fault."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first, *others = mistakes(model, value, error)
        more = f", and {len(others)} more faults" if others else ""
        raise ConfigError(f"{where}: {printable(first.text)}{more}; {remedy}") from None


def finite_number(text: str) -> float:
    """An option of the command line as a number. Raises ArgumentTypeError for what is none, and for NaN and inf."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise argparse.ArgumentTypeError(f"found {text!r} (must be a finite number)")
    return found


def printable(text: str) -> str:
    """On one line that is not too long, whatever the text holds."""
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, in which each key must stand once: of two, programs take different ones."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice!r} is there twice")
    return found
