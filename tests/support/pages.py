"""The documents as blocks and links. What stands above a block in HTML comments says how it is run."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from support import CHECKOUT

DOCUMENTED = [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").rglob("*.md"))]
PAGES = [*DOCUMENTED, CHECKOUT / "CONTRIBUTING.md"]

COMMANDS = {"bash"}
OTHERS = {"text", "yaml", "csv", "python"}
MARKS = {"not run", "run by", "setup", "run with", "exit code", "file", "output"}

_MARK = re.compile(r"<!-- ([a-z ]+?)(?:: (.*?))? -->")
_COMMENT = re.compile(r"\s+# .*$")


@dataclass(frozen=True)
class Block:
    """A fenced block. marks: name -> text of the comments right above it."""

    page: Path
    line: int
    language: str
    text: str
    marks: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"

    @property
    def is_run(self) -> bool:
        return self.language in COMMANDS and not self.marks.keys() & {"not run", "run by"}

    @property
    def lines(self) -> set[str]:
        """Its commands as they are written."""
        return set(self.text.splitlines())

    def script(self, port: int) -> str:
        """The commands, each with the words of `run with` at its end."""
        words = self.marks.get("run with", "").replace("{port}", str(port))
        if not words:
            return self.text
        lines = []
        for line in self.text.splitlines():
            ends_here = line.strip() and not line.lstrip().startswith("#") and not line.endswith("\\")
            lines.append(f"{_COMMENT.sub('', line)} {words}" if ends_here else line)
        return "\n".join(lines)


def name(page: Path) -> str:
    return str(page.relative_to(CHECKOUT))


def blocks(page: Path, text: str | None = None) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found: list[Block] = []
    marks: dict[str, str] = {}
    opened: tuple[int, str] | None = None
    content: list[str] = []
    for number, line in enumerate((page.read_text(encoding="utf-8") if text is None else text).splitlines(), start=1):
        if opened is not None:
            if line == "```":
                found.append(Block(page, opened[0], opened[1], "\n".join(content) + "\n", marks))
                opened, content, marks = None, [], {}
            else:
                content.append(line)
        elif line.lstrip().startswith("```"):
            opened = number, line.removeprefix("```")
        elif mark := _MARK.fullmatch(line):
            marks[mark[1]] = mark[2] or ""
        else:
            marks = {}
    assert opened is None, f"{page}:{opened}: this block has no end"
    return found


def faults(block: Block) -> list[str]:
    """What is wrong with a block before anything is run."""
    found = [f"{block}: unknown mark {mark!r}" for mark in block.marks.keys() - MARKS]
    if block.language not in COMMANDS | OTHERS:
        found.append(f"{block}: its language is {block.language!r}; give one of {sorted(COMMANDS | OTHERS)}")
    if "not run" in block.marks and len(block.marks["not run"].split()) < 3:
        found.append(f"{block}: it is not run and gives no reason")
    if "run by" in block.marks:
        elsewhere = set[str]().union(*(each.lines for each in blocks(CHECKOUT / block.marks["run by"]) if each.is_run))
        found += [f"{block}: {line!r} is not run by {block.marks['run by']}" for line in block.lines - elsewhere]
    return found
