"""The messages that docs/troubleshooting.md quotes are messages of the source."""

import ast
import re
from collections.abc import Iterator

import pytest

from support import CHECKOUT

PACKAGES = ("checkpoints_mgr", "data", "launcher", "monitoring", "vpred_train")
PAGE = CHECKOUT / "docs" / "troubleshooting.md"
ROWS = re.findall(r"^\| `([^`]+)` \| ([^|]+) \| ([^|]+) \|$", PAGE.read_text(encoding="utf-8"), re.M)
SHORTEST = 8


def literals(tree: ast.AST) -> Iterator[str]:
    """Every string of a module. Of an f-string the fixed parts, with a NUL for each value between them."""
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else "\0" + "\0".join(literals(part))
                for part in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.value


@pytest.fixture(scope="module")
def messages() -> list[str]:
    found = [(CHECKOUT / "run_distributed.sh").read_text()]
    for package in PACKAGES:
        for path in sorted((CHECKOUT / package).rglob("*.py")):
            found += literals(ast.parse(path.read_text()))
    return found


def holds(messages: list[str], quoted: str) -> bool:
    """Whether one message has all fixed parts of `quoted`, in their order; "..." stands for anything."""
    parts = [re.escape(part.strip()) for part in quoted.split("...") if part.strip()]
    pattern = re.compile(".*".join(parts), re.S)
    return any(pattern.search(message) for message in messages)


def test_there_is_first_aid_for_25_messages() -> None:
    assert len(ROWS) >= 25
    assert len(ROWS) == PAGE.read_text(encoding="utf-8").count("\n| `"), "a row has not three columns"
    assert len({message for message, _, _ in ROWS}) == len(ROWS)


@pytest.mark.parametrize("quoted", [message for message, _, _ in ROWS])
def test_a_quoted_message_is_in_the_source(messages: list[str], quoted: str) -> None:
    assert max(len(part.strip()) for part in quoted.split("...")) >= SHORTEST
    assert holds(messages, quoted)


def test_a_message_that_nobody_prints_is_found_out(messages: list[str]) -> None:
    assert not holds(messages, "this message ... was never written")
