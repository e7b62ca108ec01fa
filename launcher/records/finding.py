"""Defines what a preflight reports."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """Is one result of the preflight.

    check: name of the check
    found: what the check saw
    remedy: what to do about it, empty when ok
    """

    severity: Literal["ok", "warning", "error"]
    check: str
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.severity:7} {self.check}: {self.found}{f'; {self.remedy}' if self.remedy else ''}"
