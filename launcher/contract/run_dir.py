"""Names the files of the run directory and defines the small records that ranks leave there. No other module does.

RUN/cluster.yaml train.yaml plan.json hostfile rank_table.json targets.json lock events.jsonl
RUN/attempts/0001/attempt.json lease launcher.log rank_0.log rank_0.status.json rank_0.outcome.json
                  dump_stacks rank_0.stacks.json rank_0.doctor.json stragglers.json failure.json
RUN/checkpoints/step_0000000123/MANIFEST.json ckpt/ snapshots/ samples/ grids/ weights/ graphs/rank_0/
    profile/rank_0/
RUN/submit/job.sh manifest.yaml cluster.yaml recipe.yaml submitted.json cancelled over job-123.out
RUN/metrics.jsonl validation.jsonl bad_samples.jsonl report.html summary.json launcher.prom cache_entries.safetensors
A person creates RUN/checkpoint_now.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, ValidationError

from launcher.contract.config import ConfigError, Section
from launcher.contract.config_errors import first_mistake
from launcher.contract.files import write_atomic

Phase = Literal["starting", "compiling", "training", "validating", "checkpointing", "sampling", "done"]

_STEP = re.compile(r"step_(\d{10,})")

BEAT_S = 5.0  # a living rank writes its status at least this often


class DamagedRecordError(ConfigError, ValueError):
    """Reports a record that another program wrote, or an incomplete one. The message is ready to print."""


class Record(Section):
    """Is a small JSON file, read and written in one piece. A loss may be infinite or NaN."""

    model_config = ConfigDict(allow_inf_nan=True)

    def write(self, path: Path) -> None:
        """Write atomically and durably. Raises OSError: when `path` cannot be written."""
        write_atomic(path, self.model_dump_json() + "\n")

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Read the record in `path`, None without such a file. Raises DamagedRecordError: on any other content."""
        try:
            text = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = first_mistake(error)
            where = f"{'.'.join(first.keys)}: " if first.keys else ""
            raise DamagedRecordError(
                f"{path}: not a {cls.__name__} record ({where}{first.reason})", "remove it if nobody needs it"
            ) from None


class RankStatus(Record):
    """Says what a rank does now: its heartbeat.

    images_per_second: images of this rank alone
    loss: mean over all ranks
    waiting: the rank is inside a collective: it waits for the others or exchanges data with them
    timed_steps: steps that `own_seconds` covers: all of this attempt but the first, which compiles
    own_seconds: sum over `timed_steps`, without the time spent in collectives, s
    checkpoint_step: step of the newest committed checkpoint
    resumed_step: step of the checkpoint from which this attempt resumed, 0 without one, None until that is known
    phase_unix_s: time when each phase was first entered; training is entered at the end of the first step
    metrics_port: TCP port of the rank's metrics, None while it serves none
    """

    rank: int
    hostname: str
    pid: int
    phase: Phase
    step: int
    total_steps: int
    samples_seen: int
    loss: float | None = None
    images_per_second: float | None = None
    waiting: bool = False
    timed_steps: int = 0
    own_seconds: float = 0.0
    checkpoint_step: int | None = None
    resumed_step: int | None = None
    phase_unix_s: Annotated[dict[Phase, float], Field(default_factory=dict)]
    updated_unix_s: float
    metrics_port: int | None = None

    def write(self, path: Path) -> None:
        """Write atomically, but not durably: this happens about once a second."""
        write_atomic(path, self.model_dump_json() + "\n", fsync=False)


class Outcome(Record):
    """Records how a rank's trainer ended.

    returncode: as in Python's subprocess, where a negative value is minus the signal
    told_to_stop: mpirun had passed a signal on to it before
    lease_is_over: the shim ended it, because the shim saw no sign of life of the launcher
    waiting: the value in its last status (RankStatus)
    out_of_memory: evidence for the kernel's out-of-memory killer
    """

    rank: int
    hostname: str
    pid: int
    returncode: int
    last_step: int
    ended_unix_s: float
    told_to_stop: bool = False
    lease_is_over: bool = False
    waiting: bool = False
    out_of_memory: str | None = None


class StackDump(Record):
    """Records that a rank's shim has asked its trainer for its stacks.

    state: the process's state letter in /proc, such as T
    """

    rank: int
    state: str


class Summary(Record):
    """Marks a complete run: rank 0 writes it last of all.

    retrieval: fraction (0..1) of prompts whose image is nearest to their own
    report, samples, weights: paths relative to the run directory
    """

    steps: int
    samples_seen: int
    final_loss: float
    seconds: float
    retrieval: float | None
    report: Path
    samples: Path
    weights: Path


@dataclass(frozen=True)
class AttemptDir:
    """Names the files of one start of the workers: attempts/0001/."""

    root: Path

    @property
    def record(self) -> Path:
        return self.root / "attempt.json"

    @property
    def lease(self) -> Path:
        """The launcher touches this file as long as it lives."""
        return self.root / "lease"

    @property
    def launcher_log(self) -> Path:
        return self.root / "launcher.log"

    @property
    def scheduler_log(self) -> Path:
        """Holds the output of the scheduler, through which ranks of a dynamic cluster find each other."""
        return self.root / "scheduler.log"

    def log(self, rank: int) -> Path:
        return self.root / f"rank_{rank}.log"

    def status(self, rank: int) -> Path:
        return self.root / f"rank_{rank}.status.json"

    def outcome(self, rank: int) -> Path:
        return self.root / f"rank_{rank}.outcome.json"

    @property
    def dump_stacks(self) -> Path:
        """The launcher creates this file. Each rank's shim then has its trainer write its stacks to its log."""
        return self.root / "dump_stacks"

    def stacks(self, rank: int) -> Path:
        return self.root / f"rank_{rank}.stacks.json"

    def doctor(self, rank: int) -> Path:
        """Holds a rank's results of `vpred-launch doctor`."""
        return self.root / f"rank_{rank}.doctor.json"

    @property
    def stragglers_json(self) -> Path:
        return self.root / "stragglers.json"

    @property
    def failure_json(self) -> Path:
        return self.root / "failure.json"


@dataclass(frozen=True)
class SubmitDir:
    """Names the files of a submitted run: submit/."""

    root: Path

    @property
    def script(self) -> Path:
        """Slurm's batch script."""
        return self.root / "job.sh"

    @property
    def manifest(self) -> Path:
        """The objects that Kubernetes creates."""
        return self.root / "manifest.yaml"

    @property
    def cluster_yaml(self) -> Path:
        return self.root / "cluster.yaml"

    @property
    def recipe_yaml(self) -> Path:
        return self.root / "recipe.yaml"

    @property
    def submitted_json(self) -> Path:
        return self.root / "submitted.json"

    @property
    def cancelled(self) -> Path:
        """`vpred-launch cancel` creates this file. The run then does not go back into the queue."""
        return self.root / "cancelled"

    @property
    def over(self) -> Path:
        """Signals to the other pods of a job on Kubernetes that the run is complete. It holds the job's host key."""
        return self.root / "over"

    def job_log(self, job_id: str) -> Path:
        """Name the launcher's output in a job. All starts of a requeued job append to it.

        job_id: Kubernetes has NAMESPACE/TYPE/NAME, where only the name counts
        """
        return self.root / f"job-{job_id.rpartition('/')[2]}.out"


@dataclass(frozen=True)
class RunDir:
    """Names the files of a run. It creates nothing and requires nothing to exist."""

    root: Path

    @property
    def cluster_yaml(self) -> Path:
        return self.root / "cluster.yaml"

    @property
    def train_yaml(self) -> Path:
        return self.root / "train.yaml"

    @property
    def plan_json(self) -> Path:
        return self.root / "plan.json"

    @property
    def hostfile(self) -> Path:
        return self.root / "hostfile"

    @property
    def rank_table_json(self) -> Path:
        return self.root / "rank_table.json"

    @property
    def targets_json(self) -> Path:
        return self.root / "targets.json"

    @property
    def cache_entries(self) -> Path:
        """Says where the training samples lie in `data.cache`.

        Rank 0 finds them, and the other ranks map this file. Each start writes it again.
        """
        return self.root / "cache_entries.safetensors"

    @property
    def events_jsonl(self) -> Path:
        """Lists what the launcher saw and decided, in all attempts (launcher/records/event_log.py)."""
        return self.root / "events.jsonl"

    @property
    def submit(self) -> SubmitDir:
        return SubmitDir(self.root / "submit")

    @property
    def launcher_prom(self) -> Path:
        return self.root / "launcher.prom"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def attempts(self) -> Path:
        return self.root / "attempts"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    def committed_step(self) -> int:
        """Return the newest complete step in `checkpoints`, 0 without one. A complete step has its manifest."""
        steps = (int(match[1]) for path in self.checkpoints.glob("step_*") if (match := _STEP.fullmatch(path.name)))
        for step in sorted(steps, reverse=True):
            if self.manifest(step).exists():
                return step
        return 0

    def manifest(self, step: int) -> Path:
        """Name the manifest of a step's committed checkpoint.

        With checkpoints on the hosts' local disks (`checkpoint.node_folder`) it lies elsewhere.
        """
        return self.checkpoints / f"step_{step:010d}" / "MANIFEST.json"

    @property
    def checkpoint_now(self) -> Path:
        """A person creates this file to request a checkpoint at once. The trainer removes it."""
        return self.root / "checkpoint_now"

    @property
    def mindone_ckpt(self) -> Path:
        return self.root / "ckpt"

    @property
    def snapshots(self) -> Path:
        return self.root / "snapshots"

    @property
    def samples(self) -> Path:
        """Holds single images, one in each file."""
        return self.root / "samples"

    @property
    def grids(self) -> Path:
        """Holds sheets of several images: previews, and the final samples beside their real images."""
        return self.root / "grids"

    @property
    def weights(self) -> Path:
        return self.root / "weights"

    def graphs(self, rank: int) -> Path:
        """Name the folder of a rank's compiled graph. Ranks share no file."""
        return self.root / "graphs" / f"rank_{rank}"

    def profile(self, rank: int) -> Path:
        """Name the folder of what the profiler recorded on a rank."""
        return self.root / "profile" / f"rank_{rank}"

    @property
    def metrics_jsonl(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def validation_jsonl(self) -> Path:
        return self.root / "validation.jsonl"

    @property
    def bad_samples_jsonl(self) -> Path:
        """Lists the rows of the data that are not trained on, and why. It is absent when there are none."""
        return self.root / "bad_samples.jsonl"

    @property
    def report_html(self) -> Path:
        return self.root / "report.html"

    @property
    def summary_json(self) -> Path:
        return self.root / "summary.json"

    def attempt(self, number: int) -> AttemptDir:
        return AttemptDir(self.attempts / f"{number:04d}")

    def last_attempt(self) -> int:
        """Return the number of the newest attempt, 0 when there was none."""
        if not self.attempts.is_dir():
            return 0
        return max((int(entry.name) for entry in self.attempts.iterdir() if entry.name.isdecimal()), default=0)

    def next_attempt(self) -> int:
        return self.last_attempt() + 1
