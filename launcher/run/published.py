"""Keeps up to date what others watch of a run: its heartbeat, launcher.prom, and the targets of Prometheus."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from launcher.contract.files import write_atomic
from launcher.contract.run_dir import DamagedRecordError, RankStatus, RunDir
from launcher.records.attempt_record import AttemptRecord
from launcher.records.launcher_metrics import write_launcher_metrics
from launcher.records.plan_record import PlannedRun
from launcher.records.run_facts import RunFacts, RunReader, free_bytes
from launcher.records.run_lock import BEAT_S, beat
from launcher.records.straggler_record import Stragglers
from launcher.records.targets import render, target_groups

logger = logging.getLogger(__name__)


class Published:
    """Writes for one run. Errors of the file system give one warning and never end the run.

    shared_targets: file in `metrics.targets_folder` that lists the ranks while they run, None for none
    """

    def __init__(self, run: RunDir, shared_targets: Path | None) -> None:
        self._run, self._shared_targets = run, shared_targets
        self._plan, self._name = PlannedRun(), run.root.name
        self._records: Sequence[AttemptRecord] = ()
        self._statuses: Mapping[int, RankStatus] = {}
        self._beat_s = -BEAT_S
        self._has_warned = self._knows_all_ports = False

    def begin(self, plan: PlannedRun) -> None:
        """List the ranks of an attempt that begins, at the planned ports."""
        self._plan, self._knows_all_ports = plan, False
        self._name = plan.run_name or self._run.root.name
        self._list_targets({})

    def update(self, records: Sequence[AttemptRecord], statuses: Mapping[int, RankStatus]) -> None:
        """Take in the records, the newest attempt last, and what its ranks report."""
        self._records, self._statuses = records, statuses
        if not self._knows_all_ports and len(statuses) == len(self._plan.ranks):
            self._knows_all_ports = True
            self._list_targets(statuses)
        self.beat()

    def keep(self, records: Sequence[AttemptRecord], statuses: Mapping[int, RankStatus]) -> None:
        """Take in records that have changed, and publish them at once."""
        self._records, self._statuses = records, statuses
        self._show()

    def beat(self) -> None:
        """Show that the launcher lives, and write launcher.prom, if it is time."""
        now_s = time.monotonic()
        if now_s - self._beat_s >= BEAT_S:
            self._beat_s = now_s
            beat(self._run.lock)
            self._show()

    def _show(self) -> None:
        if not self._records:
            return
        record = self._records[-1]
        attempt = self._run.attempt(record.attempt)
        with self._warning():
            slow = Stragglers.read(attempt.stragglers_json)
            write_launcher_metrics(
                RunFacts(
                    run=self._run,
                    name=self._name,
                    now_unix_s=time.time(),
                    lives=True,
                    complete=False,
                    event=None,
                    plan=self._plan,
                    last_attempt=record.attempt,
                    records=tuple(self._records),
                    statuses=self._statuses,
                    ended=frozenset() if record.exit_code is None else frozenset(self._statuses),
                    stragglers=() if slow is None else slow.ranks,
                    heartbeat_unix_s=time.time(),
                    free_bytes=free_bytes(self._run.root),
                )
            )

    def end(self) -> None:
        """Publish how the run ended. Its targets must not claim the metrics of the next run on these ports."""
        with self._warning():
            facts = RunReader(self._run).read(time.time())
            ended = replace(facts, lives=False, ended=frozenset(facts.statuses))
            write_launcher_metrics(ended)
        with self._warning():
            write_atomic(self._run.targets_json, render([]))
        if self._shared_targets is not None:
            with self._warning():
                self._shared_targets.unlink(missing_ok=True)

    def _list_targets(self, statuses: Mapping[int, RankStatus]) -> None:
        plan = self._plan
        text = render(target_groups(self._name, self._run.root, plan.ranks, statuses, tls=plan.metrics_tls))
        for path in filter(None, (self._run.targets_json, self._shared_targets)):
            with self._warning():
                write_atomic(path, text)

    @contextmanager
    def _warning(self) -> Iterator[None]:
        try:
            yield
        except (OSError, DamagedRecordError) as error:
            if not self._has_warned:
                self._has_warned = True
                logger.warning("metrics of the launcher: %s", error)
