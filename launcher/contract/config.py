"""Builds configuration documents: frozen pydantic models from YAML plus `section.key=value` overrides."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from launcher.contract import config_errors, yaml_dialect

_COMMAND_LINE = "command line"
# At most three years: system timers overflow far above that.
Seconds = Annotated[float, Field(gt=0, le=1e8)]
SecondsOrNone = Annotated[float, Field(ge=0, le=1e8)]

# May a key change when a run resumes (vpred_train/prepare/recipe_changes.py)? A key that declares nothing is fixed.
FIXED = Field(json_schema_extra={"on_resume": "fixed"})
MAY_CHANGE = Field(json_schema_extra={"on_resume": "logged"})
OF_THE_MACHINE = Field(json_schema_extra={"on_resume": "machine"})


class ConfigError(Exception):
    """Reports a user's mistake. Its text "message; remedy" is ready to print, one line per mistake. Exit code 2."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(f"{message}; {remedy}" if remedy else message)
        self.remedy = remedy


class Section(BaseModel):
    """Is the base of configuration sections: immutable, without unknown keys and without non-finite numbers.

    The text below a field becomes the key's description in the JSON Schema.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        ser_json_inf_nan="constants",
        use_attribute_docstrings=True,
    )


Document = TypeVar("Document", bound=BaseModel)


def load_document(model: type[Document], path: Path, overrides: Sequence[str] = ()) -> Document:
    """Read `path` as YAML and build `model` from it. Raises ConfigError: on any mistake in it."""
    return build_document(model, _read(path), path, overrides)


def build_document(model: type[Document], raw: dict[str, Any], path: Path, overrides: Sequence[str] = ()) -> Document:
    """Apply `overrides` to `raw` and validate the result as `model`.

    raw: the content of `path`; it is changed in place
    overrides: `section.key=value`, the value in YAML

    Validation is strict: "2" is no int and true is no int, but 1 is a float.
    Raises ConfigError: on a mistake; it names the file (or the command line), the key, the value and the known choices.
    """
    overridden = [_apply(raw, override) for override in overrides]
    try:
        text = json.dumps(raw)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{path}: holds a value that is not plain text, a number, a list or a mapping ({error})"
        ) from None
    try:
        # Validate JSON: strict JSON mode still accepts a text as a Path and a list as a tuple.
        return model.model_validate_json(text, strict=True)
    except ValidationError as error:
        mistakes = config_errors.mistakes(model, raw, error)
        lines = [f"{_source(path, overridden, mistake.keys)}: {mistake.text}" for mistake in mistakes]
        raise ConfigError("\n".join(lines)) from None


def dump_yaml(document: BaseModel) -> str:
    """Render `document` as YAML that `load_document` reads back to an equal object. Paths become text."""
    return yaml_dialect.render(document.model_dump(mode="json"))


def schema_json(model: type[BaseModel]) -> str:
    """Return the JSON Schema of `model`, indented."""
    return json.dumps(model.model_json_schema(), indent=2)


def _read(path: Path) -> dict[str, Any]:
    try:
        document = yaml_dialect.parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a UTF-8 text file (byte {error.start})") from None
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: found {config_errors.shown(document)} (the file must hold keys with values)")
    return document


def _apply(raw: dict[str, Any], override: str) -> tuple[str, ...]:
    """Set one override in `raw` and return its key path."""
    dotted, equals, text = override.partition("=")
    keys = tuple(dotted.split("."))
    if not equals or not all(keys):
        raise ConfigError(f"{_COMMAND_LINE}: found {override!r} (an override is written section.key=value)")
    try:
        value = yaml_dialect.parse(text)
    except ValueError as error:
        raise ConfigError(f"{_COMMAND_LINE}: {dotted}: {error}") from None
    target = raw
    for depth, key in enumerate(keys[:-1], start=1):
        if target.get(key) is None:
            target[key] = {}
        inner = target[key]
        if not isinstance(inner, dict):
            known = ".".join(keys[:depth])
            raise ConfigError(
                f"{_COMMAND_LINE}: {dotted}: {known} is {config_errors.shown(inner)}, not a section; "
                f"give it whole: {known}=..."
            )
        target = inner
    target[keys[-1]] = value
    return keys


def _source(path: Path, overridden: Sequence[tuple[str, ...]], keys: tuple[str, ...]) -> str:
    if any(keys[: len(override)] == override for override in overridden):
        return _COMMAND_LINE
    if keys and any(override[: len(keys)] == keys for override in overridden):
        return f"{path} with the {_COMMAND_LINE}"
    return str(path)
