"""Finds the runs below a folder and reads each of them at most once in two seconds, however many ask."""

import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

from launcher.contract.config import ConfigError
from launcher.contract.run_dir import RunDir
from launcher.records.run_facts import RunFacts, RunReader, printable

PASS_S = 2.0
_FIND_S = 10.0
_DEPTH = 3  # FOLDER/runs/sweep/0001
_ENDED = ("complete", "stopped", "failed", "lost", "waiting")


@dataclass(frozen=True)
class SeenRun:
    """Is a run as it was read last.

    name: value of the label `run`, unique among the runs of the folder, and printable
    facts: None when the run cannot be read
    fault: why it cannot be read
    """

    name: str
    run: RunDir
    facts: RunFacts | None
    fault: str = ""

    @property
    def begun_unix_s(self) -> float:
        """Return when the run began, infinity when that is not known."""
        return self.facts.records[0].started_unix_s if self.facts and self.facts.records else inf


class Runs:
    """Holds the runs below `folder`, which may itself be a run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._known: dict[Path, _Known] = {}
        self._seen: tuple[SeenRun, ...] = ()
        self._found_s = self._read_s = -inf

    def seen(self) -> tuple[SeenRun, ...]:
        """Return all runs in the order of their paths. Reads them if the last pass is older than PASS_S."""
        with self._lock:
            if time.monotonic() - self._found_s >= _FIND_S:
                roots = find_runs(self._folder)
                self._known = {root: self._known.get(root) or _Known(RunDir(root)) for root in roots}
                self._found_s = time.monotonic()
            if time.monotonic() - self._read_s >= PASS_S:
                now_unix_s = time.time()
                self._seen = named([known.read(now_unix_s) for known in self._known.values()], self._folder)
                self._read_s = time.monotonic()
            return self._seen


class _Known:
    """Reads one run. A run that has ended is read again when one of its files changes."""

    def __init__(self, run: RunDir) -> None:
        self._run, self._reader = run, RunReader(run)
        self._stamp: tuple[int | None, ...] = ()
        self._seen: SeenRun | None = None

    def read(self, now_unix_s: float) -> SeenRun:
        stamp = self._present_stamp()
        last = self._seen
        if last is not None and last.facts is not None and last.facts.state in _ENDED and stamp == self._stamp:
            return replace(last, facts=replace(last.facts, now_unix_s=now_unix_s))
        self._stamp = stamp
        try:
            facts = self._reader.read(now_unix_s)
            self._seen = SeenRun(facts.name, self._run, facts)
        except (OSError, ConfigError) as error:
            self._seen = SeenRun(printable(self._run.root.name), self._run, None, printable(str(error)))
        return self._seen

    def _present_stamp(self) -> tuple[int | None, ...]:
        run = self._run
        newest = run.attempt(run.last_attempt()).root if _is_directory(run.attempts) else run.attempts
        paths = (run.attempts, newest, run.lock, run.plan_json, run.summary_json, run.events_jsonl)
        return tuple(_time_ns(path) for path in paths)


def find_runs(folder: Path) -> list[Path]:
    """Return the directories of all runs in `folder` and up to three levels below it. Links are not followed."""
    return [folder] if is_run(folder) else sorted(_below(folder, _DEPTH))


def _below(folder: Path, depth: int) -> Iterator[Path]:
    try:
        with os.scandir(folder) as entries:
            folders = [entry for entry in entries if entry.is_dir(follow_symlinks=False) and entry.name[0] != "."]
    except OSError:
        return  # removed in the meantime, or not ours to read
    for entry in folders:
        path = Path(entry.path)
        if is_run(path):
            yield path
        elif depth > 1:
            runs = list(_below(path, depth - 1))
            # A submitted run has nothing else before its job begins. A sweep has its runs below it.
            yield from runs or ([path] if RunDir(path).submit.submitted_json.exists() else [])


def is_run(path: Path) -> bool:
    """Return whether a launcher has used this directory."""
    run = RunDir(path)
    return any(os.path.lexists(each) for each in (run.plan_json, run.attempts, run.lock))


def named(runs: Sequence[SeenRun], folder: Path) -> tuple[SeenRun, ...]:
    """Give each run a name of its own. The oldest run of a name keeps it, so that its series go on.

    The others are called by their path below `folder`.
    """
    taken: dict[str, Path] = {}
    for each in sorted(runs, key=lambda each: (each.begun_unix_s, each.run.root)):
        name = each.name
        if name in taken:
            name = printable(str(each.run.root.relative_to(folder)))
        while name in taken:  # a run may be called like the path of another
            name += "+"
        taken[name] = each.run.root
    names = {root: name for name, root in taken.items()}
    return tuple(_renamed(each, names[each.run.root]) for each in runs)


def _renamed(seen: SeenRun, name: str) -> SeenRun:
    return replace(seen, name=name, facts=None if seen.facts is None else replace(seen.facts, name=name))


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def _time_ns(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None
