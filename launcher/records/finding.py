"""One thing that a preflight saw."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """`check`: what was looked at; `found`: what was seen; `remedy`: what to do about it, empty when ok."""

    severity: Literal["ok", "warning", "error"]
    check: str
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.severity:7} {self.check}: {self.found}{f'; {self.remedy}' if self.remedy else ''}"
