"""Defines a check: a list of items, each a measurement with a remedy."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from launcher.contract.doctor_record import CheckResult, Verdict
from vpred_train.doctor.station import Station


@dataclass(frozen=True)
class Measured:
    """Holds what one measurement found. The fields are those of CheckResult."""

    found: str
    verdict: Verdict = "ok"
    wanted: str = ""
    figure: float | None = None
    unit: str = ""
    least_share: float = 0.0
    same: str = ""


@dataclass(frozen=True)
class Item:
    """Is one thing to try.

    measure: does it; an exception is a finding
    remedy: what to do if it fails, is slow, or differs between ranks
    """

    subject: str
    measure: Callable[[], Measured]
    remedy: str = ""

    def result(self, check: str, measured: Measured) -> CheckResult:
        """Return the record of what was measured."""
        figure = measured.figure if measured.figure is not None and math.isfinite(measured.figure) else None
        return CheckResult(
            check=check,
            subject=self.subject,
            verdict=measured.verdict,
            found=measured.found,
            wanted=measured.wanted,
            remedy=self.remedy,
            figure=figure,
            unit=measured.unit,
            least_share=measured.least_share,
            same=measured.same,
        )


@dataclass(frozen=True)
class Check:
    """Is one row of the table of checks.

    items: lists the items; it measures nothing yet
    shared: the ranks share the items: rank r tries items r, r + W, ... of W ranks
    at_once: all ranks begin it together, because they may slow each other down
    collective: its items need all ranks, so an error on one rank ends the examination
    """

    items: Callable[[Station], Sequence[Item]]
    shared: bool = False
    at_once: bool = False
    collective: bool = False

    def items_of(self, station: Station) -> Sequence[Item]:
        """Return the items that this rank tries."""
        items = self.items(station)
        identity = station.identity
        return items[identity.rank :: identity.world_size] if self.shared else items


def left_out(reason: str) -> Measured:
    """Say why an item is not tried here."""
    return Measured(reason, verdict="left_out")
