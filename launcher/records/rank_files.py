"""Reads the files that the ranks of an attempt leave in its directory, again only where they have changed."""

import os
import re
from contextlib import suppress
from dataclasses import dataclass, field, replace

from launcher.contract.run_dir import AttemptDir, Outcome, RankStatus, StackDump

_FILE = re.compile(r"rank_(\d+)\.(status\.json|outcome\.json|stacks\.json|log)")


@dataclass(frozen=True)
class Beat:
    """Holds a rank's newest status. Its times are by the reader's time.monotonic, so hosts' clocks need not agree.

    beat_s: when the status was found to be new
    progress_s: when its phase or step was last found to be new
    """

    status: RankStatus
    beat_s: float
    progress_s: float


@dataclass
class AttemptFiles:
    """Holds the ranks' files of one attempt. Each `look` scans the directory once.

    log_bytes: size of each rank's log, bytes
    """

    attempt: AttemptDir
    beats: dict[int, Beat] = field(default_factory=dict)
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    stacks: dict[int, StackDump] = field(default_factory=dict)
    log_bytes: dict[int, int] = field(default_factory=dict)
    _stamps: dict[str, tuple[int, int]] = field(default_factory=dict)

    def look(self, now_s: float) -> None:
        """Read what is new.

        now_s: time of this look

        A shared file system may lag or fail briefly. Errors are ignored: the next look finds the change. If it fails
        for good, no rank sees a sign of life of the launcher, and all ranks end.
        """
        with suppress(OSError), os.scandir(self.attempt.root) as entries:
            for entry in entries:
                if match := _FILE.fullmatch(entry.name):
                    with suppress(OSError):
                        self._take(entry, int(match[1]), match[2], now_s)

    @property
    def statuses(self) -> dict[int, RankStatus]:
        return {rank: self.beats[rank].status for rank in sorted(self.beats)}

    def _take(self, entry: "os.DirEntry[str]", rank: int, kind: str, now_s: float) -> None:
        if kind == "log":
            self.log_bytes[rank] = entry.stat().st_size
        elif kind == "status.json":
            self._take_status(entry, rank, now_s)
        elif kind == "outcome.json":
            if rank not in self.outcomes and (outcome := Outcome.read(self.attempt.outcome(rank))) is not None:
                self.outcomes[rank] = outcome
        elif rank not in self.stacks and (dump := StackDump.read(self.attempt.stacks(rank))) is not None:
            self.stacks[rank] = dump

    def _take_status(self, entry: "os.DirEntry[str]", rank: int, now_s: float) -> None:
        stat = entry.stat()
        stamp = (stat.st_ino, stat.st_mtime_ns)
        if self._stamps.get(entry.name) == stamp:
            return
        # Statuses are not written durably: a host that lost power may leave an empty one, which is no beat.
        with suppress(ValueError):
            status = RankStatus.read(self.attempt.status(rank))
            if status is None:
                return
            self._stamps[entry.name] = stamp
            beat = Beat(status, now_s, now_s)
            before = self.beats.get(rank)
            if before is not None and (before.status.phase, before.status.step) == (status.phase, status.step):
                beat = replace(beat, progress_s=before.progress_s)
            self.beats[rank] = beat
