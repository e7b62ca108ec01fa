"""Has `python -m monitoring.export` read a run's histories, again only when they have grown."""

import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from math import inf
from pathlib import Path

from pydantic import ConfigDict, Field, ValidationError

from launcher.contract.run_dir import Record, RunDir
from launcher.processes.tied import own_program

# The command takes about half a second of a core. So it may begin this many times its duration after its last start.
_REST = 40
_LEAST_REST_S = 5.0
_FIRST_WAIT_S = 3.0
_TIMEOUT_S = 60.0
_AT_ONCE = threading.Semaphore(1)

Points = tuple[tuple[float, float | None], ...]


class Bin(Record):
    """Is the held-out loss in a range of log SNR."""

    model_config = ConfigDict(extra="ignore")
    log_snr: str
    loss: float | None
    standard_error: float | None = None


class Validation(Record):
    """Is one validation of one kind of weights; raw are those that the optimiser updates.

    loss: over all timesteps
    """

    model_config = ConfigDict(extra="ignore")
    samples: float
    weights: str = ""
    loss: float | None = None
    standard_error: float | None = None
    bins: tuple[Bin, ...] = ()


class Curves(Record):
    """Holds what the histories show, thinned to about 500 points: (samples seen, value).

    parts: seconds by part of a step
    """

    model_config = ConfigDict(extra="ignore")
    loss: Points = ()
    grad_norm: Points = ()
    images_per_second: Points = ()
    step_s: Points = ()
    validation: tuple[Validation, ...] = ()
    parts: dict[str, float] = Field(default_factory=dict)


NO_CURVES = Curves()


@dataclass(frozen=True)
class Reading:
    """Holds curves, and why there are none or no newer ones."""

    curves: Curves = NO_CURVES
    fault: str = ""


class CurveReader:
    """Reads the curves of one run in the background."""

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._lock = threading.Lock()
        self._stamp: tuple[tuple[int, int] | None, ...] = (None, None)
        self._due_s = -inf
        self._reading = Reading()
        self._worker: threading.Thread | None = None

    def read(self) -> Reading:
        """Return the newest curves. Only the first call waits for them, for a few seconds."""
        with self._lock:
            stamp = tuple(map(_stamp, (self._run.metrics_jsonl, self._run.validation_jsonl)))
            idle = self._worker is None or not self._worker.is_alive()
            if stamp != self._stamp and idle and time.monotonic() >= self._due_s:
                first, self._stamp = self._worker is None, stamp
                self._worker = threading.Thread(target=self._export, daemon=True, name="curves")
                self._worker.start()
                if first:
                    self._worker.join(_FIRST_WAIT_S)
            return self._reading

    def _export(self) -> None:
        argv = [*own_program(sys.executable, "monitoring.export"), str(self._run.root), "--to", "curves"]
        with _AT_ONCE:
            began_s = time.monotonic()
            try:
                answer = subprocess.run(
                    argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT_S, check=False
                )
                words = answer.stderr.decode(errors="replace").strip().splitlines()
                if answer.returncode == 0:
                    self._reading = Reading(Curves.model_validate_json(answer.stdout))
                else:
                    self._fail(words[-1] if words else f"exit code {answer.returncode}")
            except (OSError, subprocess.TimeoutExpired, ValidationError) as error:
                self._fail(str(error).partition("\n")[0])
            took_s = time.monotonic() - began_s
        self._due_s = time.monotonic() + max(_LEAST_REST_S, _REST * took_s)

    def _fail(self, reason: str) -> None:
        self._reading = Reading(self._reading.curves, f"the histories cannot be read: {reason}")


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
        return status.st_mtime_ns, status.st_size
    except OSError:
        return None
