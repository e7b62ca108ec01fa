"""Draws the ranks of a run: one square a rank, or one a host above 512 ranks. Each is readable without its colour."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

from launcher.contract.run_dir import RankStatus
from launcher.records.plan_record import PlannedRank
from launcher.records.run_facts import ALIVE_S, RunFacts

MOST_RANKS = 512
_ABSENT, _SILENT, _GONE = "absent", "silent", "ended"
_LETTERS = {
    "starting": "s",
    "compiling": "c",
    "training": "T",
    "validating": "V",
    "checkpointing": "S",
    "sampling": "P",
    "done": "✓",
    _SILENT: "?",
    _ABSENT: "–",
    _GONE: "×",
}
_WORDS = {
    "checkpointing": "saving a checkpoint",
    "sampling": "making pictures",
    _SILENT: "silent for 15 s",
    _ABSENT: "not begun",
    _GONE: "ended",
}
# In a square of a host the first of these that one of its ranks shows.
_WORST_FIRST = (_SILENT, _GONE, _ABSENT, *(phase for phase in _LETTERS if phase not in (_SILENT, _GONE, _ABSENT)))


@dataclass(frozen=True)
class _Square:
    """Is one square.

    shows: a key of _LETTERS
    details: what a pointer that rests on it shows
    """

    shows: str
    details: str
    slow: bool

    def __str__(self) -> str:
        title, letter = escape(self.details, quote=True), _LETTERS[self.shows]
        style = f"{'absent' if self.shows == _GONE else self.shows}{' slow' if self.slow else ''}"
        mark = "!" if self.slow else ""
        return f'<li class="{style}" role="img" aria-label="{title}" title="{title}">{letter}{mark}</li>'


def ranks_html(facts: RunFacts) -> str:
    """Render the squares with a line that sums them up and a legend."""
    if not facts.plan.ranks:
        return '<h2>Ranks</h2><p class="none">no rank is planned yet</p>'
    slow = {each.rank: each.own_step_seconds / (each.others_step_seconds or 1) for each in facts.stragglers}
    shows = {place.rank: _shows(facts, place.rank) for place in facts.plan.ranks}
    places = sorted(facts.plan.ranks, key=lambda place: place.rank)
    hosts = [(host, list(each)) for host, each in groupby(places, lambda place: place.host)]
    counts = Counter(shows.values())
    summary = f"{len(places)} ranks on {len(hosts)} host{'s' if len(hosts) > 1 else ''}: " + ", ".join(
        f"{count} {_word(kind)}" for kind, count in counts.most_common()
    )
    many = len(places) > MOST_RANKS
    if many:
        squares = "".join(str(_of_host(host, each, shows, slow)) for host, each in hosts)
        body = f'<ul class="squares many" aria-label="hosts">{squares}</ul>'
    else:
        rows = "".join(_row(facts, host, each, shows, slow) for host, each in hosts)
        body = f'<ul class="hosts" aria-label="hosts">{rows}</ul>'
    unit = "one square a host, which shows its worst rank" if many else "one square a rank"
    legend = "".join(f"<li><b>{_LETTERS[kind]}</b> {_word(kind)}</li>" for kind in _LETTERS if kind in counts)
    ring = "<li>! with a red ring: slow</li>" if slow else ""
    return f'<h2>Ranks</h2><p class="soft">{escape(summary)}; {unit}</p>{body}<ul class="legend">{legend}{ring}</ul>'


def _shows(facts: RunFacts, rank: int) -> str:
    status = facts.statuses.get(rank)
    if status is None:
        return _ABSENT
    if status.phase == "done":
        return "done"
    if rank in facts.ended or not facts.attempt_runs:
        return _GONE
    return _SILENT if facts.now_unix_s - status.updated_unix_s > ALIVE_S else status.phase


def _word(shows: str) -> str:
    return _WORDS.get(shows, shows)


def _row(
    facts: RunFacts, host: str, places: Sequence[PlannedRank], shows: dict[int, str], slow: dict[int, float]
) -> str:
    squares = "".join(str(_of_rank(facts, place, shows[place.rank], slow.get(place.rank))) for place in places)
    label = escape(host)
    return f'<li>{label}<ul class="squares" aria-label="ranks on {label}">{squares}</ul></li>'


def _of_rank(facts: RunFacts, place: PlannedRank, shows: str, ratio: float | None) -> _Square:
    details = [f"rank {place.rank} on {place.host}: {_word(shows)}", *_of_status(facts, facts.statuses.get(place.rank))]
    if ratio is not None:
        details.append(f"slow: {ratio:.1f} times the others' own time")
    return _Square(shows, ", ".join(details), ratio is not None)


def _of_status(facts: RunFacts, status: RankStatus | None) -> list[str]:
    if status is None:
        return []
    own = [f"{status.own_seconds / status.timed_steps:.3f} s own work a step"] if status.timed_steps else []
    waiting = ["waits in a collective"] if status.waiting else []
    age_s = max(0.0, facts.now_unix_s - status.updated_unix_s)
    return [f"step {status.step:,}", *own, *waiting, f"reported {age_s:.0f} s ago"]


def _of_host(host: str, places: Sequence[PlannedRank], shows: dict[int, str], slow: dict[int, float]) -> _Square:
    counts = Counter(shows[place.rank] for place in places)
    worst = min(counts, key=_WORST_FIRST.index)
    slow_here = [place.rank for place in places if place.rank in slow]
    words = ", ".join(f"{count} {_word(kind)}" for kind, count in counts.most_common())
    late = f"; slow: rank {', '.join(map(str, slow_here))}" if slow_here else ""
    return _Square(worst, f"{host}: {words}{late}", bool(slow_here))
