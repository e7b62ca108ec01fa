"""Judges from the ranks' records how an attempt ended. mpirun's exit code may be 0 even after a host crash."""

import signal
from collections.abc import Mapping
from dataclasses import dataclass

from launcher.contract.exit_codes import ExitCode
from launcher.contract.run_dir import AttemptDir, Outcome, RankStatus, Summary
from launcher.supervision.failure import Failure, FailureKind
from launcher.supervision.hangs import Hang, Suspect

_STOP_SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL)
# Return codes of a rank after a stop signal: it ended by itself, by the signal, or with a shell's code for the signal.
_STOPPED = {0, int(ExitCode.PREEMPTED), *(-n for n in _STOP_SIGNALS), *(128 + n for n in _STOP_SIGNALS)}
_PASSED_ON = {ExitCode.BAD_CONFIG, ExitCode.PREEMPTED, ExitCode.DIVERGED}
_LOSSES = {
    "mpirun": "mpirun lost its daemon on {host}, or the ssh that started it",
    "srun": "Slurm lost the node {host}",
}
_SIGNAL_HINTS: dict[int, str] = {
    signal.SIGKILL: "somebody killed it: the kernel for want of memory (dmesg tells), a scheduler, or a person",
    signal.SIGSEGV: "a fault in native code: the stack of it is in the log",
    signal.SIGBUS: "no room in /dev/shm, or a file that shrank while mapped",
}


@dataclass(frozen=True)
class Verdict:
    """Says how an attempt ended.

    exit_code: an ExitCode, or 128 + n when signal n ended the rank that failed first
    text: one line, empty when nothing failed
    failure: the first failure, None unless the attempt failed
    """

    exit_code: int
    text: str
    failure: Failure | None = None


@dataclass(frozen=True)
class Evidence:
    """Holds what an attempt left behind.

    hosts: the host of every rank of the plan
    stopped: the launcher was asked to stop the job
    blaming_a_peer: ranks whose log says that another rank is at fault
    lost_host: the host that the starter lost contact with, as the starter calls it
    starter: the program that started the ranks
    hang: the hang for which the launcher ended the attempt
    suspect: the rank that seems to have caused the hang
    """

    hosts: Mapping[int, str]
    statuses: Mapping[int, RankStatus]
    outcomes: Mapping[int, Outcome]
    summary: Summary | None
    mpirun_returncode: int
    stopped: bool
    attempt: AttemptDir
    blaming_a_peer: frozenset[int] = frozenset()
    lost_host: str | None = None
    starter: str = "mpirun"
    hang: Hang | None = None
    suspect: Suspect | None = None


def judge(evidence: Evidence) -> Verdict:
    """Judge the evidence. This function is pure, so failure.read_log adds what only the logs say."""
    failed, preempted = _first_failure(evidence)
    if evidence.summary is not None:
        return Verdict(ExitCode.OK, "" if failed is None else f"{_told(failed)} after the run was complete")
    # Suspect a lost host first, then ranks that left no outcome file or exited 0 too early. Ranks that only reacted to
    # those come last.
    lost = _lost_rank(evidence)
    if evidence.hang is not None and lost is None:  # a lost host is why the others hang
        return _failed(_hung(evidence, evidence.hang), ExitCode.FAILED)
    someone_vanished = lost is not None or bool(_silent_ranks(evidence)) or bool(_early_exits(evidence))
    only_reacted = failed is not None and someone_vanished and not preempted and _only_reacted(evidence, failed)
    if failed is not None and not only_reacted:
        return _failed(_ended_badly(evidence, failed), _exit_code(failed.returncode))
    if preempted:
        return Verdict(ExitCode.PREEMPTED, _stopped(evidence))
    return _failed(_unfinished(evidence) if lost is None else _cut_off(evidence, lost), ExitCode.FAILED)


def ended(returncode: int) -> str:
    """Return a return code in words: "exit code 3" or "SIGKILL"."""
    if returncode >= 0:
        return f"exit code {returncode}"
    try:
        return signal.Signals(-returncode).name
    except ValueError:
        return f"signal {-returncode}"


def _failed(failure: Failure, exit_code: int) -> Verdict:
    text = f"rank {failure.rank} on host {failure.host} {failure.ended} after step {failure.last_step}"
    return Verdict(exit_code, text, failure)


def _exit_code(returncode: int) -> int:
    if returncode < 0:
        return 128 - returncode
    return returncode if returncode in _PASSED_ON else ExitCode.FAILED


def _first_failure(evidence: Evidence) -> tuple[Outcome | None, bool]:
    """Return the failure that came first, and whether the job was stopped rather than failed.

    mpirun ends the other ranks soon after the first that ends badly, so their ends explain nothing. Nor does the end of
    a rank that gave up waiting for another. Hosts' clocks differ, so a rank's knowledge counts before its time of end.
    If the first rank ended with PREEMPTED, somebody else (a scheduler) sent the ranks a stop signal.
    """
    bad = sorted(
        (each for each in evidence.outcomes.values() if each.returncode != 0),
        key=lambda each: (each.told_to_stop, _only_reacted(evidence, each), each.ended_unix_s),
    )
    preempted = evidence.stopped or (bool(bad) and bad[0].returncode == ExitCode.PREEMPTED)
    failures = [each for each in bad if not (preempted and each.returncode in _STOPPED)]
    return (failures[0] if failures else None), preempted


def _only_reacted(evidence: Evidence, outcome: Outcome) -> bool:
    """Return whether the rank ended because of another.

    A trainer that was killed alone did not, even if it waited: mpirun and msrun kill its shim too, and then it has no
    outcome. Nor did a rank whose lease ran out: its shim then ends mpirun's daemon, and with it the ranks beside it.
    """
    if outcome.lease_is_over:
        return False
    waited = outcome.waiting and outcome.returncode != -signal.SIGKILL
    return outcome.told_to_stop or waited or outcome.rank in evidence.blaming_a_peer


def _lost_rank(evidence: Evidence) -> int | None:
    """Return the first rank of the host that mpirun lost. mpirun uses the plan's name for it or the host's hostname."""
    for rank, host in evidence.hosts.items():
        status = evidence.statuses.get(rank)
        if evidence.lost_host in (host, host if status is None else status.hostname):
            return rank
    return None


def _cut_off(evidence: Evidence, rank: int) -> Failure:
    """Describe a lost host. mpirun kills the other hosts' ranks at once, so their outcomes may be missing as well."""
    status = evidence.statuses.get(rank)
    return Failure(
        kind="lost",
        rank=rank,
        host=evidence.hosts[rank],
        ended="was lost with the way to its host",
        last_step=0 if status is None else status.step,
        cause=_LOSSES.get(evidence.starter, _LOSSES["mpirun"]).format(host=evidence.lost_host),
        hint=f"are the host and its network up? {evidence.starter}'s words: {evidence.attempt.launcher_log}",
        log=evidence.attempt.log(rank),
    )


def _silent_ranks(evidence: Evidence) -> list[int]:
    """Return the ranks without an outcome: they were killed together with their shims, or their host is gone."""
    return [rank for rank in evidence.hosts if rank not in evidence.outcomes]


def _early_exits(evidence: Evidence) -> list[Outcome]:
    """Return the ranks of an incomplete run that ended with success by themselves, the earliest first."""
    left = (each for each in evidence.outcomes.values() if each.returncode == 0 and not each.told_to_stop)
    return sorted(left, key=lambda each: each.ended_unix_s)


def _ended_badly(evidence: Evidence, failed: Outcome) -> Failure:
    kind: FailureKind = "exit"
    cause = hint = ""
    if failed.returncode < 0:
        kind, hint = "signal", _SIGNAL_HINTS.get(-failed.returncode, "")
    if failed.lease_is_over:
        cause = "its shim ended it: no sign of life of the launcher for launcher.lease_s"
        hint = "was the launcher suspended, or this host cut off from it or from the shared file system?"
    elif failed.returncode == -signal.SIGKILL:
        cause = "SIGKILL, which was not ours: probably killed for want of memory"
    if failed.out_of_memory is not None:
        kind, cause = "out_of_memory", f"killed by the kernel for want of memory ({failed.out_of_memory})"
        hint = "smaller batch, fewer ranks or data workers per host, or more memory for the job"
    return Failure(
        kind=kind,
        rank=failed.rank,
        host=failed.hostname,
        ended=f"ended with {ended(failed.returncode)}",
        returncode=failed.returncode,
        last_step=failed.last_step,
        cause=cause,
        hint=hint,
        log=evidence.attempt.log(failed.rank),
    )


def _hung(evidence: Evidence, hang: Hang) -> Failure:
    suspect = evidence.suspect or Suspect(hang.rank, "", 0)
    return Failure(
        kind="hang",
        rank=suspect.rank,
        host=evidence.hosts[suspect.rank],
        ended=f"made no progress for {hang.waited_s:.0f} s ({hang.phase})",
        last_step=suspect.last_step,
        cause=suspect.sign,
        hint=f"see the stacks at the end of each rank's log; if it only needs longer: supervision.timeouts.{hang.key}",
        log=evidence.attempt.log(suspect.rank),
    )


def _unfinished(evidence: Evidence) -> Failure:
    """Describe an end without a recorded failure: some ranks left no outcome, or all left before the run's end."""
    silent = _silent_ranks(evidence)
    answered = {evidence.hosts[rank] for rank in evidence.outcomes}
    # A host without any outcome is a better suspect than a rank that mpirun was quick to kill.
    first = silent or [each.rank for each in _early_exits(evidence)] or [0]
    rank = next((each for each in silent if evidence.hosts[each] not in answered), first[0])
    status = evidence.statuses.get(rank)
    starter = evidence.starter
    names = ", ".join(f"{each} on host {evidence.hosts[each]}" for each in silent[:4])
    more = f" and {len(silent) - 4} more" if len(silent) > 4 else ""
    return Failure(
        kind="lost" if silent else "incomplete",
        rank=rank,
        host=evidence.hosts[rank],
        ended="left no account of its end" if silent else "ended without an error, but the run is not complete,",
        last_step=0 if status is None else status.step,
        cause=f"{starter} ended ({ended(evidence.mpirun_returncode)}) and left no account of rank {names}{more}"
        if silent
        else "",
        hint=f"is the host up, the run directory shared and not full? read {evidence.attempt.launcher_log}"
        if silent
        else "",
        log=evidence.attempt.log(rank),
    )


def _told(failed: Outcome) -> str:
    return f"rank {failed.rank} on host {failed.hostname} ended with {ended(failed.returncode)}"


def _stopped(evidence: Evidence) -> str:
    outcomes = evidence.outcomes.values()
    # Ranks that were killed with their shims left no outcome, but a status with their step.
    steps = [*(each.last_step for each in outcomes), *(each.step for each in evidence.statuses.values())]
    step = max(steps, default=0)
    if any(outcome.returncode == ExitCode.PREEMPTED for outcome in outcomes):
        return f"stopped after step {step}, checkpoint saved; the same command resumes"
    return f"stopped after step {step} without a new checkpoint; the same command resumes from the last one"
