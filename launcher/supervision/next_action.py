"""Decides what the launcher does next with a running attempt. It is pure: no clock, no process."""

import signal
from dataclasses import dataclass
from typing import Literal

Action = Literal["wait", "send_signal", "ask_checkpoint", "end_hang", "end_late", "kill"]
# These actions end the watch.
ENDING: frozenset[Action] = frozenset({"end_hang", "end_late", "kill"})


@dataclass(frozen=True)
class Situation:
    """Describes a running attempt as the launcher sees it.

    due_signal: the signal that mpirun should have received by now, None without a request to stop
    sent_signal: the last signal sent to mpirun
    was_early: it was sent before every rank had begun; srun forgets a signal that comes before its tasks
    is_hung: a rank exceeded its timeout
    wants_checkpoint: a checkpoint was requested and the ranks do not know yet
    all_have_begun: every rank has written a status
    is_late: some rank ended, and the others outlived the grace time
    """

    due_signal: signal.Signals | None = None
    sent_signal: signal.Signals | None = None
    was_early: bool = False
    is_hung: bool = False
    wants_checkpoint: bool = False
    all_have_begun: bool = False
    is_late: bool = False


def next_action(seen: Situation) -> Action:
    """Choose the next action. A request to stop comes before a hang, because its signals escalate by themselves."""
    if seen.due_signal is signal.SIGKILL:
        return "kill"
    if seen.due_signal is not None and (
        seen.due_signal is not seen.sent_signal or (seen.was_early and seen.all_have_begun)
    ):
        return "send_signal"
    if seen.due_signal is None and seen.is_hung:
        return "end_hang"
    if seen.is_late:
        return "end_late"
    # The signal for a checkpoint ends a process that has no handler for it: a shim before its rank's first status, or a
    # trainer that leaves. A stop saves a checkpoint anyway.
    if seen.due_signal is None and seen.wants_checkpoint and seen.all_have_begun:
        return "ask_checkpoint"
    return "wait"
