"""YAML as the configuration files use it: safe, without YAML 1.1's surprises, no duplicate keys.

Numbers follow YAML 1.2's core schema (1e-4 is a float; 1:30 and 010 are text), dates stay text. Loader and
dumper share these rules, so a text that looks like a number is quoted when written.
"""

import re
from collections.abc import Hashable
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
_REPLACED_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("int", "float", "timestamp")}


def _resolvers(inherited: dict[str, list[tuple[str, Any]]]) -> dict[str, list[tuple[str, Any]]]:
    kept = {
        first: [(tag, pattern) for tag, pattern in rules if tag not in _REPLACED_TAGS]
        for first, rules in inherited.items()
    }
    for tag, pattern, firsts in (("int", _INT, "-+0123456789"), ("float", _FLOAT, "-+.0123456789")):
        for first in firsts:
            kept.setdefault(first, []).append((f"tag:yaml.org,2002:{tag}", pattern))
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
            seen[key] = key_node
        return super().construct_mapping(node, deep)


class _Loader(_Rules, yaml.SafeLoader):
    yaml_implicit_resolvers = _resolvers(yaml.SafeLoader.yaml_implicit_resolvers)


class _FastLoader(_Rules, CSafeLoader):
    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = _resolvers(yaml.SafeDumper.yaml_implicit_resolvers)

    def represent_text(self, text: str) -> yaml.ScalarNode:
        # U+0085 counts as a line break in YAML 1.1 and is folded to a space unless it is escaped.
        style = '"' if "\x85" in text else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)


def parse(text: str) -> Any:
    """The document in `text`; raises ValueError with one line that says where and what."""
    # What the fast one refuses the other one tells better, or takes.
    with suppress(yaml.YAMLError):
        return yaml.load(text, Loader=_FastLoader)  # noqa: S506  a SafeLoader subclass
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  a SafeLoader subclass
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{where}not valid YAML ({error.problem or error.context})") from None
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML ({' '.join(str(error).split())})") from None


def render(document: Any) -> str:
    """`document` (JSON-like values) as block YAML in the given key order; `parse` gives it back."""
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
