"""Defines findings about a rank table, and the rows that say what a key may hold."""

import contextlib
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from launcher.contract.config_errors import shown

# HCCL's error codes, as its documentation names them.
BAD_FILE = "EI0004"
BAD_VALUE = "EI0014"
BAD_KEY_OR_TYPE = "EI0017"
MIXED_FAMILIES = "EI0001"

_JSON_NAMES: dict[type, str] = {
    str: "text in quotes",
    int: "a number without quotes",
    list: "a list",
    dict: "a mapping",
}


_MOST_DIGITS = 20


@dataclass(frozen=True)
class Finding:
    """Describes a fault in a rank table.

    path: place in the table
    value: what stands there
    code: HCCL's error code, empty if HCCL would accept it
    """

    path: str
    value: str
    rule: str
    problem: str
    remedy: str
    code: str = BAD_VALUE
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        answer = f" [HCCL: {self.code}]" if self.code else ""
        place = f"{self.path}: " if self.path else ""
        return f"{self.severity:7} {place}found {self.value} ({self.problem}){answer}; {self.remedy}"


@dataclass(frozen=True)
class Key:
    """Says what a key must hold.

    kind: type of the JSON value
    fits: whether a value of that type is valid
    must: the requirement in words
    """

    rule: str
    kind: type
    must: str
    remedy: str
    fits: Callable[[Any], bool] = bool
    required: bool = False


def check_object(value: Any, path: str, keys: Mapping[str, Key], ignored: frozenset[str]) -> Iterator[Finding]:
    """Check that `value` is a mapping with the required `keys`, each of its kind and valid.

    ignored: keys that may be there too
    """
    if not isinstance(value, dict):
        yield Finding(path, shown(value), "type", "must be a mapping", "write { ... }", BAD_KEY_OR_TYPE)
        return
    for name, key in keys.items():
        place = f"{path}.{name}" if path else name
        if name not in value:
            if key.required:
                remedy = f"add it; {key.must}"
                yield Finding(place, "nothing", "required-key", "this key is required", remedy, BAD_KEY_OR_TYPE)
        elif type(value[name]) is not key.kind:  # True is no number
            problem = f"must be {_JSON_NAMES[key.kind]}"
            yield Finding(place, shown(value[name]), "type", problem, key.remedy, BAD_KEY_OR_TYPE)
        elif not key.fits(value[name]):
            yield Finding(place, shown(value[name]), key.rule, key.must, key.remedy)
    for name in value:
        if name not in keys and name not in ignored:
            place = f"{path}.{name}" if path else name
            remedy = "remove it, or look for a misspelling"
            yield Finding(place, shown(value[name]), "known-keys", "no key that HCCL knows", remedy, "", "warning")


def entries(value: Any, name: str) -> list[Any]:
    """Return `value[name]` if that is a list, else an empty list: another finding reports that."""
    inner = value.get(name) if isinstance(value, dict) else None
    return inner if isinstance(inner, list) else []


def is_number(text: str, lowest: int = 0, highest: int = 0xFFFFFFFF) -> bool:
    """Return whether `text` is a plain decimal number within these bounds."""
    return text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS and lowest <= int(text) <= highest


def is_port(text: str) -> bool:
    return is_number(text, 1, 65535)


def is_address(text: str) -> bool:
    return family(text) != 0


def are_addresses(text: str) -> bool:
    """Return whether `text` is one address, or several with commas between."""
    return all(is_address(each) for each in text.split(","))


def family(text: str) -> int:
    """Return 4 or 6, or 0 when `text` is no address. It uses inet_pton, as HCCL does."""
    for number, kind in ((4, socket.AF_INET), (6, socket.AF_INET6)):
        with contextlib.suppress(OSError, ValueError):  # ValueError: not ASCII
            socket.inet_pton(kind, text)
            return number
    return 0


def one_of(*choices: str) -> Callable[[str], bool]:
    return frozenset(choices).__contains__


def text_of(longest: int) -> Callable[[str], bool]:
    return lambda text: 1 <= len(text) <= longest
