"""Checks input from other programs: regular files, finite numbers, and JSON that is read through a model.

A model of foreign JSON derives from `Foreign`, which ignores keys that it does not name. Every fault is one line with
the place, the key, the value found and the remedy.
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
    """Models a part of a document that other programs write. Strict: neither "96" nor 1.5 is an int; 1 is a float."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)


Model = TypeVar("Model", bound=BaseModel)


def require_regular(path: Path) -> None:
    """Check that `path` is a regular file.

    Raises ConfigError: when it is a folder, or a device, pipe or socket, which may never end.
    Raises OSError: when nothing is there.
    """
    try:
        mode = path.stat().st_mode
    except ValueError:  # the name holds a NUL
        raise ConfigError(f"{printable(str(path))}: is not a path; give a file") from None
    if not stat.S_ISREG(mode):
        kinds = ((stat.S_ISDIR, "folder"), (stat.S_ISFIFO, "pipe"), (stat.S_ISSOCK, "socket"))
        kind = next((name for test, name in kinds if test(mode)), "device")
        raise ConfigError(f"{path}: is a {kind}, not a regular file; give a file")


def read_document(model: type[Model], path: Path, remedy: str) -> Model | None:
    """Read the JSON file `path` as `model`; return None when there is no such file.

    Raises ConfigError: when it cannot be read or does not fit the model.
    """
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
    """Parse the JSON `text` as `model`.

    where: the place of the text, for the error message.
    Raises ConfigError: when it is no JSON or does not fit the model.
    """
    try:
        found = json.loads(text, object_pairs_hook=_once_each)
    except RecursionError:
        raise ConfigError(f"{where}: is JSON with too deeply nested brackets; {remedy}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: is not JSON ({printable(str(error))}); {remedy}") from None
    except ValueError as error:  # a key occurs twice, or a number has thousands of digits
        raise ConfigError(f"{where}: {printable(str(error))}; {remedy}") from None
    return validated(model, found, where, remedy)


def validated(model: type[Model], value: Any, where: str, remedy: str) -> Model:
    """Validate the JSON `value` as `model`.

    where: the place of the value, for the error message.
    Raises ConfigError: when it does not fit; the message names the first fault.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first, *others = mistakes(model, value, error)
        more = f", and {len(others)} more faults" if others else ""
        raise ConfigError(f"{where}: {printable(first.text)}{more}; {remedy}") from None


def finite_number(text: str) -> float:
    """Parse a command-line option as a number.

    Raises ArgumentTypeError: when it is no number, or NaN or inf.
    """
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise argparse.ArgumentTypeError(f"found {text!r} (must be a finite number)")
    return found


def printable(text: str) -> str:
    """Return the text on one line of limited length, with unprintable characters escaped."""
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object. Each key must occur once, because programs disagree about which of two counts.

    Raises ValueError: when a key occurs twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice!r} is there twice")
    return found
