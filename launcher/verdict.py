"""How an attempt ended, judged from the ranks' own records: mpirun may say 0 after a host crash."""

import signal
from collections.abc import Mapping
from dataclasses import dataclass

from launcher.contract.exit_codes import ExitCode
from launcher.contract.run_dir import Outcome, Summary

_STOP_SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL)
# What a rank that was told to stop may end with: itself, killed by the signal, or a shell's code for that.
_STOPPED = {0, int(ExitCode.PREEMPTED), *(-n for n in _STOP_SIGNALS), *(128 + n for n in _STOP_SIGNALS)}
_PASSED_ON = {ExitCode.BAD_CONFIG, ExitCode.PREEMPTED, ExitCode.DIVERGED}


@dataclass(frozen=True)
class Verdict:
    """`text`: one line; `rank`: whose log tells more, None for the launcher's own log or none needed; `stopped`: the
    launcher was asked to stop, so whatever happened, nothing is to follow."""

    exit_code: ExitCode
    text: str
    rank: int | None = None
    stopped: bool = False


def judge(
    hosts: Mapping[int, str],
    outcomes: Mapping[int, Outcome],
    summary: Summary | None,
    mpirun_returncode: int,
    stopped: bool,
) -> Verdict:
    """`hosts`: host of every rank of the plan; `stopped`: the launcher was asked to stop the job."""
    failed, preempted = _first_failure(outcomes, stopped)
    if summary is not None:
        return Verdict(ExitCode.OK, _late_failure(failed))
    if failed is not None:
        return _failure(failed)
    if preempted:
        return Verdict(ExitCode.PREEMPTED, _stopped(outcomes))
    silent = [rank for rank in hosts if rank not in outcomes]
    if not silent:
        return Verdict(ExitCode.FAILED, "every rank ended without an error, but the run is not complete", 0)
    names = ", ".join(f"{rank} on host {hosts[rank]}" for rank in silent[:4])
    more = f" and {len(silent) - 4} more" if len(silent) > 4 else ""
    return Verdict(
        ExitCode.FAILED,
        f"mpirun ended ({ended(mpirun_returncode)}) and left no account of rank {names}{more}",
    )


def ended(returncode: int) -> str:
    """A return code in words: "exit code 3" or "SIGKILL"."""
    if returncode >= 0:
        return f"exit code {returncode}"
    try:
        return signal.Signals(-returncode).name
    except ValueError:
        return f"signal {-returncode}"


def _first_failure(outcomes: Mapping[int, Outcome], stopped: bool) -> tuple[Outcome | None, bool]:
    """The failure that came first, and whether the job was stopped rather than failed.

    mpirun ends the other ranks soon after the first that ends badly, so their ends are no news. A first rank
    that ends with PREEMPTED means that somebody else (a scheduler) told the ranks to stop.
    """
    bad = sorted((each for each in outcomes.values() if each.returncode != 0), key=lambda each: each.ended_unix_s)
    preempted = stopped or (bool(bad) and bad[0].returncode == ExitCode.PREEMPTED)
    failures = [each for each in bad if not (preempted and each.returncode in _STOPPED)]
    return (failures[0] if failures else None), preempted


def _failure(failed: Outcome) -> Verdict:
    passed_on = failed.returncode in _PASSED_ON
    return Verdict(
        ExitCode(failed.returncode) if passed_on else ExitCode.FAILED,
        f"rank {failed.rank} on host {failed.hostname} ended with {ended(failed.returncode)} "
        f"after step {failed.last_step}",
        failed.rank,
    )


def _late_failure(failed: Outcome | None) -> str:
    if failed is None:
        return ""
    return (
        f"rank {failed.rank} on host {failed.hostname} ended with {ended(failed.returncode)} after the run was complete"
    )


def _stopped(outcomes: Mapping[int, Outcome]) -> str:
    step = max((outcome.last_step for outcome in outcomes.values()), default=0)
    if any(outcome.returncode == ExitCode.PREEMPTED for outcome in outcomes.values()):
        return f"stopped after step {step}, checkpoint saved; the same command resumes"
    return f"stopped after step {step} without a new checkpoint; the same command resumes from the last one"
