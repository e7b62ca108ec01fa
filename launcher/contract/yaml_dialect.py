"""Reads and writes YAML as the configuration files use it: safe, without YAML 1.1's surprises or duplicate keys.

Numbers follow YAML 1.2's core schema (1e-4 is a float; 1:30 and 010 are text). Dates stay text. Loader and dumper share
these rules, so the dumper quotes a text that looks like a number. The loader refuses what no configuration file needs:
tags, keys that are no text, and unbounded nesting, aliases and numbers. These end in a crash or take all memory.
"""

import re
from collections.abc import Hashable, Iterable
from contextlib import suppress
from typing import Any

import yaml
from yaml.constructor import SafeConstructor

try:
    from yaml import CSafeLoader  # libyaml's parser, several times as fast
except ImportError:  # PyYAML was built without it
    from yaml import SafeLoader as CSafeLoader  # type: ignore[assignment]

_INT = re.compile(r"^(?:[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F]+)$")
_FLOAT = re.compile(
    r"^(?:[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_YAML = "tag:yaml.org,2002:"
_REPLACED_TAGS = {f"{_YAML}{name}" for name in ("int", "float", "timestamp")}
_TEXT_KEYS = {f"{_YAML}{name}" for name in ("str", "merge", "value")}
_KNOWN_TAGS = {None, "!", *(f"{_YAML}{name}" for name in ("str", "seq", "map"))}
# libyaml's loader recurses without a bound: 100,000 brackets end the process.
_MOST_DEPTH = 50
_MOST_VALUES = 1_000_000  # 20,000 devices with their addresses are 150,000
_MOST_DIGITS = 100


def _resolvers(inherited: dict[str, list[tuple[str, Any]]]) -> dict[str, list[tuple[str, Any]]]:
    kept = {
        first: [(tag, pattern) for tag, pattern in rules if tag not in _REPLACED_TAGS]
        for first, rules in inherited.items()
    }
    for tag, pattern, firsts in (("int", _INT, "-+0123456789"), ("float", _FLOAT, "-+.0123456789")):
        for first in firsts:
            kept.setdefault(first, []).append((f"{_YAML}{tag}", pattern))
    return kept


class _Rules(SafeConstructor):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[object, yaml.Node] = {}
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key in seen and key != "<<":
                line = seen[key].start_mark.line + 1
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is already given in line {line}", key_node.start_mark
                )
            if key_node.tag not in _TEXT_KEYS:
                found = f"key {key if key is not None else 'of several values'} is not text; put it in quotes"
                raise yaml.constructor.ConstructorError(None, None, found, key_node.start_mark)
            seen[key] = key_node
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: Any) -> Any:
        text = super().construct_scalar(node)
        try:
            # JSON writes a character above U+FFFF as two surrogates. A lone surrogate is no character.
            whole = text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            whole = "\0"
        if "\0" in whole:
            raise yaml.constructor.ConstructorError(
                None, None, f"text {text[:40]!r} holds half of a surrogate pair", node.start_mark
            )
        return whole


class _Loader(_Rules, yaml.SafeLoader):
    yaml_implicit_resolvers = _resolvers(yaml.SafeLoader.yaml_implicit_resolvers)


class _FastLoader(_Rules, CSafeLoader):
    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = _resolvers(yaml.SafeDumper.yaml_implicit_resolvers)

    def ignore_aliases(self, data: Any) -> bool:
        return True  # a value that is used twice is written twice, as a person would

    def represent_text(self, text: str) -> yaml.ScalarNode:
        # U+0085 counts as a line break in YAML 1.1 and is folded to a space unless it is escaped.
        style = '"' if "\x85" in text else None
        if "\n" in text and text.replace("\n", "").isprintable():
            style = "|"
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)


def parse(text: str) -> Any:
    """Parse the document in `text`. Raises ValueError: when it is refused, with one line that says where and why."""
    # The Python loader reports better what the fast one refuses, or accepts it.
    with suppress(yaml.YAMLError):
        _require_plain(yaml.parse(text, Loader=_FastLoader))
        return yaml.load(text, Loader=_FastLoader)  # noqa: S506  a SafeLoader subclass
    try:
        _require_plain(yaml.parse(text, Loader=_Loader))
        return yaml.load(text, Loader=_Loader)  # noqa: S506  a SafeLoader subclass
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{where}not valid YAML ({error.problem or error.context})") from None
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML ({' '.join(str(error).split())})") from None


def render(document: Any) -> str:
    """Render `document` (JSON-like values) as block YAML in the given key order. `parse` reads it back."""
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _require_plain(events: Iterable[Any]) -> None:
    """Raise ConstructorError for a document that the loaders must not even receive."""
    around: list[tuple[str | None, int]] = []  # (anchor, number of values before it) of each open collection
    values_of: dict[str, int] = {}  # anchor -> number of values, with those of the aliases inside
    values = 0
    for event in events:
        fault = None
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in around):
                fault = f"the alias *{event.anchor} contains itself"
            values += values_of.get(str(event.anchor), 1)
        elif isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent):
            values += 1
            if event.tag not in _KNOWN_TAGS:
                fault = f"the tag {str(event.tag).replace(_YAML, '!!')} is not supported here; leave it out"
            if event.anchor is not None:
                values_of.pop(event.anchor, None)  # an anchor may be given again
        if isinstance(event, yaml.CollectionStartEvent):
            around.append((event.anchor, values - 1))
            if len(around) > _MOST_DEPTH:
                fault = f"nested more than {_MOST_DEPTH} deep"
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = around.pop()
            if anchor is not None:
                values_of[anchor] = values - before
        elif isinstance(event, yaml.ScalarEvent) and len(event.value) > _MOST_DIGITS and _INT.match(event.value):
            fault = f"a number of {len(event.value)} digits"
        if values > _MOST_VALUES:
            fault = f"more than {_MOST_VALUES:,} values, with all aliases expanded"
        if fault is not None:
            raise yaml.constructor.ConstructorError(None, None, f"found {fault}", event.start_mark)
