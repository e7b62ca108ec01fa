"""Messages, help texts, comments and docstrings of the packages avoid the words that a reader must read twice."""

import ast
import io
import tokenize
from collections.abc import Iterator

import pytest

from support import CHECKOUT
from support.retired_words import retired_in
from support.source_tree import PACKAGES


def texts(source: str) -> Iterator[tuple[int, str]]:
    """(line, text) of each string literal and comment. Of an f-string only the fixed parts."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("#: ")


def faults(source: str) -> list[str]:
    return [f"{line}: {word!r} in {text.strip()[:60]!r}" for line, text in texts(source) for word in retired_in(text)]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_has_no_retired_word(package: str) -> None:
    found = [
        f"{path.relative_to(CHECKOUT)}:{fault}"
        for path in sorted((CHECKOUT / package).rglob("*.py"))
        for fault in faults(path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("planted", "word"),
    [
        ('raise ValueError("the file tells no type")', "tells"),
        ('f"{name}: told to predict {kind}"', "told"),
        ('"""Wait for the launcher\'s wish."""', "wish"),
        ('add(help="make it anew")', "anew"),
        ("# left no account of its end", "no account"),
        ("#: rows must account for every byte", "account for"),
        ('"mend or remove them"', "mend"),
        ('"%d that a run bears in a row"', "bears"),
        ("# killed for want of memory", "for want of"),
        ('"""Divide a batch into so many parts."""', "so many"),
        ('"""Do it.\n\n    Of two clusters the first is taken.\n    """', "Of"),
        ('"Who leaves first ends the daemon."', "Who"),
        ('"""Return it. What is slow comes last."""', "What"),
    ],
)
def test_a_planted_word_is_found(planted: str, word: str) -> None:
    assert [fault.split("'")[1] for fault in faults(planted)] == [word]


@pytest.mark.parametrize(
    "sentence",
    [
        '"What is the network predicting?"',
        '"the ServiceAccount of a pod, or a service account"',
        "file.tell()",
        '"the head bearing"',
        '"a rank of many so that many can fail"',
        '"the retold story of wishful thinking, amended"',
        "told_to_stop = 1",
    ],
)
def test_other_words_pass(sentence: str) -> None:
    assert faults(sentence) == []
