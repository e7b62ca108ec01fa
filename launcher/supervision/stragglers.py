"""Finds ranks whose local work is slower than the others'. Step times do not show it: all wait for the slowest."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from statistics import median

from launcher.cluster.supervision import StragglerSettings
from launcher.contract.run_dir import RankStatus
from launcher.records.straggler_record import Straggler

_MAD_TO_SIGMA = 1.4826  # of a normal distribution


def slow_ranks(own_step_s: Mapping[int, float], settings: StragglerSettings) -> list[Straggler]:
    """Return the ranks that stand out in one window.

    A rank is compared with the others. Their sigma is estimated from their median absolute deviation, so a few slow
    ranks do not hide each other. With two ranks it is 0, and the ratio alone decides.
    """
    found = []
    for rank, own in own_step_s.items():
        others = [step_s for other, step_s in own_step_s.items() if other != rank]
        if not others:
            return []
        middle = median(others)
        sigma = _MAD_TO_SIGMA * median(abs(step_s - middle) for step_s in others)
        if own > middle * (1 + settings.slower_ratio) and own > middle + settings.sigmas * sigma:
            found.append(Straggler(rank=rank, own_step_seconds=own, others_step_seconds=middle))
    return found


@dataclass
class StragglerWatch:
    """Groups statuses into windows and counts the windows in a row in which a rank stood out."""

    settings: StragglerSettings
    stragglers: dict[int, Straggler] = field(default_factory=dict)
    _opened_s: float = -inf
    _before: dict[int, tuple[int, float]] = field(default_factory=dict)
    _in_a_row: dict[int, int] = field(default_factory=dict)

    def update(self, statuses: Mapping[int, RankStatus], world_size: int, now_s: float) -> bool:
        """Take in statuses and return whether `stragglers` has changed.

        A window closes when its time is over and every rank has made a step in it.
        """
        if len(statuses) < world_size or now_s < self._opened_s + self.settings.window_s:
            return False
        before, now = self._before, {rank: (each.timed_steps, each.own_seconds) for rank, each in statuses.items()}
        if before and any(now[rank][0] <= before[rank][0] for rank in now):
            return False
        self._opened_s, self._before = now_s, now
        if not before:
            return False
        return self._close({rank: (now[rank][1] - before[rank][1]) / (now[rank][0] - before[rank][0]) for rank in now})

    def _close(self, own_step_s: Mapping[int, float]) -> bool:
        slow = {each.rank: each for each in slow_ranks(own_step_s, self.settings)}
        self._in_a_row = {rank: self._in_a_row.get(rank, 0) + 1 for rank in slow}
        known = set(self.stragglers)
        self.stragglers = {
            rank: each for rank, each in slow.items() if self._in_a_row[rank] >= self.settings.windows_in_a_row
        }
        return set(self.stragglers) != known
