"""Renders what the doctor found: a table and its findings for a reader, JSON for programs."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby

from launcher.doctor.diagnosis import Line, Trouble
from launcher.records.finding import Finding

_FOUND_LETTERS = 90
_FOLDED_FROM = 12  # a check with more items that are ok shows one line for them


@dataclass(frozen=True)
class Report:
    """Holds a whole examination.

    logs: folder of the ranks' logs, empty when no rank was started
    """

    lines: Sequence[Line]
    troubles: Sequence[Trouble]
    ranks: int
    seconds: float
    logs: str

    @property
    def ok(self) -> bool:
        return not self.troubles

    def to_json(self) -> str:
        """Render indented JSON."""
        document = {
            "ok": self.ok,
            "ranks": self.ranks,
            "seconds": round(self.seconds, 1),
            "logs": self.logs,
            "checks": [asdict(line) for line in self.lines],
            "findings": [asdict(trouble) for trouble in self.troubles],
        }
        return json.dumps(document, indent=2)

    def __str__(self) -> str:
        shown = _folded(self.lines)
        rows = [(line.state, line.check, line.subject, _cut(line.found), line.wanted) for line in shown]
        widths = [max((len(row[column]) for row in rows), default=0) for column in range(4)]
        text = [
            "  ".join(f"{cell:{width}}" for cell, width in zip(row, [*widths, 0], strict=True)).rstrip() for row in rows
        ]
        if self.troubles:
            text += ["", *(f"finding  {trouble}" for trouble in self.troubles)]
        count = len(self.troubles)
        verdict = "these machines can train" if self.ok else f"{count} finding{'s' if count > 1 else ''}"
        ranks = f"{self.ranks} rank{'s' if self.ranks > 1 else ''}"
        text += ["", f"{verdict}: {len(self.lines)} results of {ranks} in {self.seconds:.0f} s"]
        if self.logs:
            text.append(f"logs: {self.logs}")
        return "\n".join(text)


def of_preflight(findings: Sequence[Finding]) -> tuple[list[Line], list[Trouble]]:
    """Return the preflight's results as lines, and its errors as findings."""
    lines = [
        Line("failed" if each.severity == "error" else each.severity, "preflight", each.check, each.found, "", 0)
        for each in findings
    ]
    errors = (each for each in findings if each.severity == "error")
    return lines, [Trouble("preflight", each.check, None, None, each.found, each.remedy) for each in errors]


def _folded(lines: Sequence[Line]) -> list[Line]:
    """Return the lines to show: those that are ok in a check of many items become one."""
    shown: list[Line] = []
    for check, group in groupby(lines, key=lambda line: line.check):
        items = list(group)
        fine = [line for line in items if line.state == "ok"]
        if len(fine) < _FOLDED_FROM:
            shown += items
            continue
        worst = max(fine, key=lambda line: line.figure or 0.0)
        found = f"largest: {worst.figure or 0.0:.2g} {worst.unit}, {worst.subject}"
        shown += [line for line in items if line.state != "ok"]
        shown.append(Line("ok", check, f"{len(fine)} items (--json lists them)", found, "", 0))
    return shown


def _cut(text: str) -> str:
    return text if len(text) <= _FOUND_LETTERS else f"{text[: _FOUND_LETTERS - 3]}..."
