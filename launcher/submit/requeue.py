"""Decides whether a job goes back into the queue when its run has ended. It is pure: no clock, no scheduler."""

from dataclasses import dataclass
from typing import Literal

from launcher.contract.exit_codes import ExitCode
from launcher.submit.submitted import Submitted


@dataclass(frozen=True)
class RunEnd:
    """Describes how a run ended within its job.

    hosts_lost: hosts were lost, and too few are left to go on in this job
    cancelled: the user's `cancel` has left its mark
    state: the scheduler's word for the job now
    checkpoint_step: step of the newest checkpoint
    """

    exit_code: int
    hosts_lost: bool
    cancelled: bool
    state: str
    checkpoint_step: int


@dataclass(frozen=True)
class Decision:
    """Says what follows.

    why: part of a sentence for the operator, empty where nothing needs to be said
    record: the submission's record as it must be kept
    """

    action: Literal["end", "requeue"]
    why: str
    record: Submitted


def decide_requeue(end: RunEnd, record: Submitted, max_requeues: int, max_without_progress: int) -> Decision:
    """Decide on a job whose run has ended: only a stop with a checkpoint or lost hosts put it back into the queue."""

    def ends(why: str = "") -> Decision:
        return Decision("end", why, record.changed(exit_code=end.exit_code))

    lost = end.hosts_lost and end.exit_code not in (ExitCode.OK, ExitCode.BAD_CONFIG, ExitCode.DIVERGED)
    if end.exit_code != ExitCode.PREEMPTED and not lost:
        return ends()
    if end.cancelled:
        return ends("it was cancelled")
    if end.state != "RUNNING":  # requeueing a job that a person ends would start it again
        return ends(f"the scheduler ends the job ({end.state})")
    if record.is_chain:
        return Decision("end", "the next job of the chain goes on", record)
    if record.requeues >= max_requeues:
        return ends(f"all {max_requeues} requeues (submit.max_requeues) are used up")
    in_vain = 0 if end.checkpoint_step > record.checkpoint_step else record.without_progress + 1
    if in_vain >= max_without_progress:
        return ends(f"{in_vain} starts in a row left no newer checkpoint (restart.max_without_progress)")
    kept = record.changed(
        requeues=record.requeues + 1, without_progress=in_vain, checkpoint_step=end.checkpoint_step, exit_code=None
    )
    why = "it was stopped" if end.exit_code == ExitCode.PREEMPTED else "hosts were lost"
    return Decision("requeue", f"{why}; requeue {kept.requeues} of at most {max_requeues}", kept)
