"""Defines what a scheduler must do for the launcher. `schedulers.py` lists those that there are."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from launcher.cluster.config import ClusterConfig
from launcher.cluster.submit import SubmitConfig
from launcher.contract.run_dir import RunDir

Phase = Literal["pending", "running", "ended"]


@dataclass(frozen=True)
class Submission:
    """Holds all that rendering depends on, besides the files that every scheduler's jobs read.

    cluster, settings: the cluster file, and its section `submit`
    program: argv of vpred-launch, with an absolute path, as the nodes see it
    train_yaml: the resolved recipe; of a sweep, the first run's
    after: ids of jobs that must end with success first
    singleton: start after all earlier jobs of the run have ended
    tasks: number of runs in a sweep, RUN/0000 and so on; None submits RUN itself
    """

    cluster: ClusterConfig
    settings: SubmitConfig
    train_yaml: str
    run: RunDir
    program: tuple[str, ...]
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
    exit_code: of a job that has ended, None where the scheduler does not say
    """

    job_id: str
    phase: Phase
    state: str
    reason: str = ""
    nodes: str = ""
    time_left: str = ""
    restarts: int = 0
    exit_code: int | None = None


class Scheduler(Protocol):
    """Runs jobs on nodes of a cluster.

    sees_our_files: the nodes have the paths of this machine, so that the recipe's data can be checked here
    """

    sees_our_files: bool

    def render(self, submission: Submission) -> Rendered:
        """Render the job. It is pure. Raises ConfigError: when the settings cannot make a job."""

    def check(self, submission: Submission, rendered: Rendered) -> None:
        """Ask the scheduler whether it would take the job, before anything is written.

        Raises ConfigError: when the scheduler's program is missing or would refuse the job; it names our key.
        """

    def submit(self, submission: Submission, rendered: Rendered) -> str:
        """Hand over the job, whose files are written, and return its id. Raises ConfigError: as `check` does."""

    def query(self, job_id: str) -> JobState | None:
        """Return the job's state, None when the scheduler does not know the job any more.

        Raises ConfigError: when the scheduler does not answer.
        """

    def cancel(self, job: JobState, *, now: bool) -> None:
        """Remove a pending job. Stop a running one with a checkpoint, or with `now` at once.

        Raises ConfigError: when the scheduler refuses.
        """
