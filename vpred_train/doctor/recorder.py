"""Writes a rank's results as they come, and its heartbeat, by which the launcher finds a rank that hangs."""

import os
import threading
import time
from contextlib import suppress

from launcher.contract.doctor_record import CheckResult, DoctorRecord
from launcher.contract.files import write_atomic
from launcher.contract.identity import Identity
from launcher.contract.run_dir import BEAT_S, AttemptDir, Phase, RankStatus
from vpred_train.distributed.watchdog import CollectiveTimer


class Recorder:
    """Keeps this rank's record and status.

    total: number of items that the rank will try
    timer: that of its collective, as soon as there is one
    """

    def __init__(self, identity: Identity, attempt: AttemptDir) -> None:
        self.identity, self.attempt = identity, attempt
        self.results: list[CheckResult] = []
        self.total = 0
        self.timer = CollectiveTimer()
        self.phase: Phase = "starting"
        self.phase_unix_s: dict[Phase, float] = {}
        self.tried = 0
        self.writing, self.closed = threading.Lock(), threading.Event()
        threading.Thread(target=self._beat, daemon=True, name="status").start()

    def begin(self, check: str, subject: str = "") -> None:
        """Record what the rank tries now."""
        self._write_record(check, subject)
        if check != "start":
            self.phase = "training"
        self.phase_unix_s = {self.phase: time.time()} | self.phase_unix_s
        self._write_status()

    def add(self, result: CheckResult) -> None:
        """Record a result."""
        self.results.append(result)
        self.tried += 1
        self._write_record(result.check, result.subject)
        self._write_status()

    def end(self) -> None:
        """Record that all checks have run."""
        self._write_record("end", "", complete=True)
        self.closed.set()

    def _write_record(self, check: str, subject: str, *, complete: bool = False) -> None:
        record = DoctorRecord(
            rank=self.identity.rank, check=check, subject=subject, results=tuple(self.results), complete=complete
        )
        write_atomic(self.attempt.doctor(record.rank), record.model_dump_json() + "\n", fsync=complete)

    def _beat(self) -> None:
        while not self.closed.wait(BEAT_S / 2):
            with suppress(OSError):  # the main thread's writes raise the error of a full disk
                self._write_status()

    def _write_status(self) -> None:
        with self.writing:
            RankStatus(
                rank=self.identity.rank,
                hostname=self.identity.hostname,
                pid=os.getpid(),
                phase=self.phase,
                step=self.tried,
                total_steps=self.total,
                samples_seen=0,
                waiting=self.timer.inside,
                phase_unix_s=self.phase_unix_s,
                updated_unix_s=time.time(),
            ).write(self.attempt.status(self.identity.rank))
