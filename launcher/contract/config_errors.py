"""Turns pydantic's validation errors into one readable line per mistake."""

import ast
import difflib
import json
import re
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

_SHOWN_LENGTH = 60


@dataclass(frozen=True)
class Mistake:
    """Describes one mistake in a document.

    keys: its place in the document
    text: the line to print, without the file's name
    """

    keys: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class InvalidValue:
    """Describes one value that validation refused.

    keys: the value's place, empty for a full model
    found: the value
    reason: what is wrong with it
    """

    keys: tuple[str, ...]
    found: Any
    reason: str


def first_mistake(error: ValidationError) -> InvalidValue:
    """Return the first mistake of a model that is no document of the user's. The caller words the line."""
    first = error.errors(include_url=False)[0]
    return InvalidValue(tuple(map(str, first["loc"])), first["input"], _reason(first["msg"]))


def mistakes(model: type[BaseModel], raw: Any, error: ValidationError) -> list[Mistake]:
    """List the mistakes in `raw`, in pydantic's order. One line covers all alternatives of a union."""
    by_place: dict[tuple[str | int, ...], list[str]] = {}
    details = error.errors(include_url=False)
    for detail in details:
        if detail["type"] == "too_short" and any(_is_below(each["loc"], detail["loc"]) for each in details):
            continue  # pydantic does not count the items it refused
        place = _place(raw, detail["loc"], missing=detail["type"] == "missing")
        message = _message(model, place, detail)
        messages = by_place.setdefault(place, [])
        if message not in messages:
            messages.append(message)
    return [
        Mistake(tuple(str(part) for part in place), _line(raw, place, messages)) for place, messages in by_place.items()
    ]


def shown(value: Any) -> str:
    """Render `value` as a user would write it, shortened."""
    if isinstance(value, dict):
        return "a mapping" if value else "an empty mapping"
    text = repr(value) if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= _SHOWN_LENGTH else f"{text[: _SHOWN_LENGTH - 3]}..."


def _place(raw: Any, loc: tuple[str | int, ...], *, missing: bool) -> tuple[str | int, ...]:
    """Return `loc` without the union tags that pydantic appends below the value itself."""
    value = raw
    for depth, part in enumerate(loc):
        in_list = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if not in_list and not (isinstance(value, dict) and part in value):
            return loc[: depth + 1] if missing and isinstance(value, dict | list) else loc[:depth]
        value = value[part]
    return loc


def _is_below(loc: tuple[str | int, ...], above: tuple[str | int, ...]) -> bool:
    return len(loc) > len(above) and loc[: len(above)] == above


def _line(raw: Any, place: tuple[str | int, ...], messages: Sequence[str]) -> str:
    words = (f"[{part}]" if isinstance(part, int) else part if part.isprintable() else repr(part) for part in place)
    where = re.sub(r"\.\[", "[", ".".join(words))
    return f"{where}: {'; or '.join(messages)}" if where else "; or ".join(messages)


def _message(model: type[BaseModel], place: tuple[str | int, ...], detail: Any) -> str:
    kind = detail["type"]
    if kind == "missing":
        return "found nothing (this key is required)"
    if kind == "extra_forbidden":
        return f"found an unknown key{_known(str(place[-1]), _keys(model, place[:-1]))}"
    found = f"found {shown(detail['input'])}"
    if kind in {"literal_error", "enum"}:
        return f"{found} (not one of the choices){_known(detail['input'], _choices(detail['ctx']['expected']))}"
    if kind in {"model_type", "model_attributes_type", "dict_type"}:
        return f"{found} (must be a section of keys with values){_known(None, _keys(model, place))}"
    reason = _reason(detail["msg"]).removeprefix("Input ")
    # Do not repeat a full section: the fault lies between its keys.
    whole = kind in {"value_error", "assertion_error"} and isinstance(detail["input"], dict)
    return reason if whole else f"{found} ({reason})"


def _reason(message: str) -> str:
    """Return pydantic's message without the name of the exception that a validator raised."""
    return re.sub(r"^(Value error, |Assertion failed, )", "", message)


def _known(found: object, known: Iterable[str]) -> str:
    names = list(known)
    if not names:
        return ""
    near = difflib.get_close_matches(found, names, n=1) if isinstance(found, str) else []
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return f"{hint} known: {', '.join(names)}"


def _choices(expected: str) -> list[str]:
    """Return the values in pydantic's list "'a', 'b' or 3"."""
    quoted = re.findall(r"'(?:[^'\\]|\\.)*'|[^\s,']+", expected)
    return [str(ast.literal_eval(word)) if word.startswith("'") else word for word in quoted if word != "or"]


def _keys(model: type[BaseModel], place: tuple[str | int, ...]) -> list[str]:
    """Return the keys known at `place`, in order of definition. The list is empty when no model describes it."""
    annotation: Any = model
    for part in place:
        annotation = _inner(annotation, part)
    found = _models(annotation)
    return list(dict.fromkeys(info.alias or name for each in found for name, info in each.model_fields.items()))


def _inner(annotation: Any, part: str | int) -> Any:
    for model in _models(annotation):
        for name, info in model.model_fields.items():
            if part in {name, info.alias}:
                return info.annotation
    for candidate in (annotation, *typing.get_args(annotation)):
        arguments = typing.get_args(candidate)
        if arguments and typing.get_origin(candidate) in {list, tuple, dict}:
            return arguments[1] if typing.get_origin(candidate) is dict else arguments[0]
    return None


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Return the models in `annotation`: itself, or the alternatives of a union or Annotated."""
    return [
        candidate
        for candidate in (annotation, *typing.get_args(annotation))
        if isinstance(candidate, type)
        and issubclass(candidate, BaseModel)
        and (candidate is annotation or typing.get_origin(annotation) not in {list, tuple, dict})
    ]
