"""Shows which check the slowest rank is in, and renews the launcher's lease."""

from collections.abc import Mapping
from contextlib import suppress
from typing import TextIO

from launcher.contract.doctor_record import DoctorRecord
from launcher.contract.run_dir import AttemptDir, RankStatus
from launcher.rank.lease import Lease


class DoctorProgress:
    """Implements the Progress of `supervise`: one line for each check."""

    def __init__(self, attempt: AttemptDir, lease: Lease, stream: TextIO) -> None:
        self._attempt, self._lease, self._stream = attempt, lease, stream
        self._shown = ""
        self._step = -1
        lease.renew()

    def update(self, statuses: Mapping[int, RankStatus]) -> None:
        self._lease.renew()
        if not statuses:
            return
        slowest = min(statuses.values(), key=lambda status: (status.step, status.rank))
        if slowest.step == self._step:
            return
        self._step = slowest.step
        record = None
        with suppress(OSError, ValueError):  # a shared file system may fail briefly, or show a file before its content
            record = DoctorRecord.read(self._attempt.doctor(slowest.rank))
        if record is not None and not record.complete and record.check != self._shown:
            self._shown = record.check
            done = f" ({slowest.step} of {slowest.total_steps} results)" if slowest.step else ""
            self.line(f"{record.check} ...{done}")

    def line(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        self._stream.flush()
