"""The words that the project's sentences avoid; the style page in CONTRIBUTING.md says what to write instead."""

import re

WORDS = re.compile(
    r"\b(tells?|told|telling|wish(?:es|ed)?|anew|accounts? (?:of|for)|no account|mend(?:s|ed|ing)?|bears?|for want of"
    r"|so many|manieth)\b"
)
FIRST = re.compile(r"(?:^|[.:;] +)(Of|Who|What) (?![^.]*\?)", re.M)  # as the first word of a sentence that asks nothing


def retired_in(text: str) -> list[str]:
    """The retired words of a text."""
    lines = "\n".join(line.strip() for line in text.splitlines())
    return [" ".join(word.split()) for word in WORDS.findall(lines.replace("\n", " ")) + FIRST.findall(lines)]
