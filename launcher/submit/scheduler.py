"""Defines what a scheduler must do for the launcher. `schedulers.py` lists those that there are."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from launcher.cluster.config import ClusterConfig
from launcher.contract.run_dir import RunDir


@dataclass(frozen=True)
class Submission:
    """Holds all that rendering depends on, besides the files that every scheduler's jobs read.

    cluster: the cluster file, with its section `submit`
    train_yaml: the resolved recipe
    program: absolute path of vpred-launch, as the nodes see it
    after: ids of jobs that must end with success first
    singleton: start after all earlier jobs of the run have ended
    tasks: number of runs in a sweep, RUN/0000 and so on; None submits RUN itself
    """

    cluster: ClusterConfig
    train_yaml: str
    run: RunDir
    program: Path
    after: tuple[str, ...] = ()
    singleton: bool = False
    tasks: int | None = None


@dataclass(frozen=True)
class Rendered:
    """Holds what is handed to the scheduler.

    files: absolute path -> text that it gets before `argv` runs
    argv: the command that submits
    """

    files: dict[Path, str]
    argv: tuple[str, ...]


@dataclass(frozen=True)
class JobState:
    """Describes a job as its scheduler sees it now.

    phase: pending: not begun, also after a requeue; running: it has nodes; ended: it never runs again
    state: the scheduler's word for it
    reason: the scheduler's words on why it waits or ended, may be empty
    nodes: nodes that it runs on, as the scheduler writes them
    time_left: until its time limit, as the scheduler writes it, empty where there is none
    restarts: number of times that it was put back into the queue
    """

    job_id: str
    phase: Literal["pending", "running", "ended"]
    state: str
    reason: str = ""
    nodes: str = ""
    time_left: str = ""
    restarts: int = 0


class Scheduler(Protocol):
    """Runs jobs on nodes of a cluster."""

    def render(self, submission: Submission) -> Rendered:
        """Render the job. It is pure. Raises ConfigError: when the settings cannot make a job."""

    def submit(self, rendered: Rendered) -> str:
        """Hand over the job, whose files are written, and return its id.

        Raises ConfigError: when the scheduler's program is missing or refuses the job; it names our key.
        """

    def query(self, job_id: str) -> JobState | None:
        """Return the job's state, None when the scheduler does not know the job any more.

        Raises ConfigError: when the scheduler does not answer.
        """

    def cancel(self, job: JobState, *, now: bool) -> None:
        """Remove a pending job. Stop a running one with a checkpoint, or with `now` at once.

        Raises ConfigError: when the scheduler refuses.
        """
