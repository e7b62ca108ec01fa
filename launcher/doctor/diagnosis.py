"""Compares the ranks' results and finds what is wrong, and where. It is pure: no clock, no disk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from launcher.contract.doctor_record import CheckResult, DoctorRecord

State = Literal["ok", "failed", "slow", "differs", "left out", "warning"]
_RANKS_SHOWN = 4


@dataclass(frozen=True)
class Line:
    """Sums up one item on all ranks that tried it.

    ranks: the number of these
    figure, unit: the largest figure, None without one
    """

    state: State
    check: str
    subject: str
    found: str
    wanted: str
    ranks: int
    figure: float | None = None
    unit: str = ""


@dataclass(frozen=True)
class Trouble:
    """Is one finding.

    rank, host: where; None when it concerns no single rank
    """

    check: str
    subject: str
    rank: int | None
    host: str | None
    found: str
    remedy: str

    def __str__(self) -> str:
        where = f"rank {self.rank} on host {self.host}: " if self.rank is not None else ""
        name = f"{self.check}: {self.subject}" if self.subject else self.check
        return f"{name}: {where}{self.found}{f'; {self.remedy}' if self.remedy else ''}"


def diagnose(records: Sequence[DoctorRecord], hosts: Mapping[int, str]) -> tuple[list[Line], list[Trouble]]:
    """Return a line for each item, in the order of the checks, and the findings about single ranks.

    records: in rank order; a rank that was started twice has two, of different checks
    hosts: the host of every rank
    """
    items: dict[tuple[str, str], dict[int, CheckResult]] = {}
    for record in records:
        for result in record.results:
            items.setdefault((result.check, result.subject), {})[record.rank] = result
    checks = list(dict.fromkeys(check for check, _ in items))
    lines, troubles = [], []
    for (check, subject), results in sorted(items.items(), key=lambda item: checks.index(item[0][0])):
        found = [*_failed(results), *(_slow(results) or _different(results))]
        state = found[0][0] if found else _state(results)
        first = next(iter(results.values()))
        largest = max((each.figure for each in results.values() if each.figure is not None), default=None)
        text = _summary(results)
        lines.append(Line(state, check, subject, text, first.wanted, len(results), largest, first.unit))
        troubles += [Trouble(check, subject, rank, hosts[rank], text, results[rank].remedy) for _, rank, text in found]
    return lines, troubles


Found = tuple[State, int, str]  # state of the line, rank, text


def _state(results: Mapping[int, CheckResult]) -> State:
    return "left out" if all(each.verdict == "left_out" for each in results.values()) else "ok"


def _failed(results: Mapping[int, CheckResult]) -> list[Found]:
    return [
        ("failed", rank, f"{each.found}{f' (wanted: {each.wanted})' if each.wanted else ''}")
        for rank, each in results.items()
        if each.verdict == "failed"
    ]


def _slow(results: Mapping[int, CheckResult]) -> list[Found]:
    """Find the ranks whose figure is far below the others' median."""
    figures = {rank: each.figure for rank, each in results.items() if each.figure is not None and each.least_share > 0}
    found: list[Found] = []
    for rank, figure in figures.items():
        others = [each for other, each in figures.items() if other != rank]
        least = results[rank].least_share
        if results[rank].verdict == "ok" and others and figure < least * (usual := median(others)):
            unit = results[rank].unit
            text = f"{_number(figure)} {unit}, below {least:.0%} of the other ranks' median of {_number(usual)} {unit}"
            found.append(("slow", rank, text))
    return found


def _different(results: Mapping[int, CheckResult]) -> list[Found]:
    """Find the ranks whose value is not the one that most ranks have; of equally many, rank 0's side counts."""
    values = {rank: each.same for rank, each in results.items() if each.same}
    if len(set(values.values())) < 2:
        return []
    by_value: dict[str, list[int]] = {}
    for rank, value in values.items():
        by_value.setdefault(value, []).append(rank)
    usual = max(by_value, key=lambda value: len(by_value[value]))
    text = f"but {usual} on {_names(by_value[usual])}"
    return [("differs", rank, f"{value}, {text}") for rank, value in values.items() if value != usual]


def _summary(results: Mapping[int, CheckResult]) -> str:
    """Return what was found on all ranks: the range of the figures, or the words of a rank that failed."""
    worst = next((each for each in results.values() if each.verdict == "failed"), None)
    if worst is not None:
        return worst.found
    figures = sorted(each.figure for each in results.values() if each.figure is not None)
    first = next(iter(results.values()))
    if not figures or len({each.found for each in results.values()}) == 1:
        return first.found
    low, high = _number(figures[0]), _number(figures[-1])
    return f"{low if low == high else f'{low} to {high}'} {first.unit}"


def _names(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:_RANKS_SHOWN]))
    more = f" and {len(ranks) - _RANKS_SHOWN} more" if len(ranks) > _RANKS_SHOWN else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}{more}"


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
