"""Finds the rank that has made no progress for too long, and the stalled rank that seems to be the cause."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from launcher.cluster.supervision import Timeouts
from launcher.contract.run_dir import BEAT_S, Phase, StackDump
from launcher.records.rank_files import Beat

_FROZEN_S = 3 * BEAT_S
TIMEOUT_OF: dict[Phase, str] = {
    "starting": "start_s",
    "compiling": "compile_s",
    "training": "step_s",
    "checkpointing": "checkpoint_s",
    "validating": "validation_s",
    "sampling": "end_s",
    "done": "end_s",
}


@dataclass(frozen=True)
class Hang:
    """Says that `rank` made no progress in `phase` for longer than supervision.timeouts.`key`."""

    rank: int
    phase: Phase
    waited_s: float
    key: str


@dataclass(frozen=True)
class Suspect:
    """Names the `rank` that seems to have held up the others since `last_step`. `sign` is the evidence."""

    rank: int
    sign: str
    last_step: int


def find_hang(
    timeouts: Timeouts, beats: Mapping[int, Beat], running: Collection[int], started_s: float, now_s: float
) -> Hang | None:
    """Find the rank of `running` that is furthest over its timeout.

    started_s: the attempt's start, from which the wait for a rank's first status counts; all times are as in Beat
    """
    worst: tuple[float, Hang] | None = None
    for rank in running:
        beat = beats.get(rank)
        phase: Phase = "starting" if beat is None else beat.status.phase
        waited_s = now_s - (started_s if beat is None else beat.progress_s)
        key = TIMEOUT_OF[phase]
        over_s = waited_s - getattr(timeouts, key)
        if over_s > 0 and (worst is None or over_s > worst[0]):
            worst = (over_s, Hang(rank, phase, waited_s, key))
    return None if worst is None else worst[1]


def find_suspect(
    hang: Hang, beats: Mapping[int, Beat], running: Collection[int], stacks: Mapping[int, StackDump]
) -> Suspect:
    """Find the rank that holds up the others.

    One stuck rank stalls all others in their next collective. The first of the signs below that some ranks show and
    others do not decides.
    """

    def suspect(rank: int, sign: str) -> Suspect:
        return Suspect(rank, sign, beats[rank].status.step if rank in beats else 0)

    ranks = sorted(running)
    newest_s = max((beats[rank].beat_s for rank in ranks if rank in beats), default=0.0)
    signs = [
        (
            "it has not begun, but others have",
            [rank for rank in ranks if rank not in beats],
        ),
        (
            "its host did not answer the request for stacks: host or network down, or the run directory is not shared",
            [rank for rank in ranks if rank not in stacks] if stacks else [],
        ),
        (
            "its process is stopped (SIGSTOP or a debugger)",
            [rank for rank in ranks if rank in stacks and stacks[rank].state in "Tt"],
        ),
        (
            "its process hangs in the kernel (state D: storage or device)",
            [rank for rank in ranks if rank in stacks and stacks[rank].state == "D"],
        ),
        (
            "its process no longer reports its status",
            [rank for rank in ranks if rank in beats and newest_s - beats[rank].beat_s > _FROZEN_S],
        ),
        (
            "it is in no collective while others wait in one",
            [rank for rank in ranks if rank in beats and not beats[rank].status.waiting],
        ),
    ]
    for sign, found in signs:
        if found and len(found) < len(ranks):
            return suspect(hang.rank if hang.rank in found else found[0], sign)
    return suspect(hang.rank, "no rank stands out; compare the stacks in the logs")
