"""Attempt, verdict, decision, next attempt: until a run is done, cannot go on, or is asked to stop."""

import signal
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from launcher.account import AttemptRecord
from launcher.cluster import ClusterConfig
from launcher.contract.exit_codes import ExitCode
from launcher.lease import TERM_GRACE_S
from launcher.plan import LaunchPlan
from launcher.restart import FailedAttempt, GiveUp, Restart, decide
from launcher.verdict import Verdict

_FINAL = (ExitCode.BAD_CONFIG, ExitCode.PREEMPTED, ExitCode.DIVERGED)
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Attempted:
    """An attempt that has ended."""

    plan: LaunchPlan
    verdict: Verdict
    record: AttemptRecord


def recover(
    cluster: ClusterConfig,
    attempt: Callable[[ClusterConfig], Attempted],
    sweep: Callable[[Sequence[str]], Sequence[str]],
    rank_counts: Callable[[], Collection[int]],
) -> Attempted:
    """Run `attempt` until it does not fail or `cluster.restart` allows no more; returns the last one.

    sweep: clears the hosts given of the run's ranks and returns those that it could not. rank_counts: see `decide`;
    asked for only if ranks may become fewer. BAD_CONFIG, DIVERGED and a wish to stop are followed by no other attempt.
    """
    history: list[FailedAttempt] = []
    current = cluster
    while True:
        ended = attempt(current)
        if ended.verdict.exit_code == ExitCode.OK:
            return ended
        unreachable = sweep(ended.plan.hosts)
        if unreachable:
            names, lease_s = ", ".join(unreachable), cluster.launcher.lease_s
            _say(f"could not be cleared: {names}; ranks that still run there end themselves within {lease_s:g} s")
        if ended.verdict.exit_code in _FINAL or ended.verdict.stopped or not cluster.restart.max_restarts:
            return ended
        record = ended.record
        history.append(FailedAttempt(record.host, record.resumed_step, record.checkpoint_step))
        # Hosts that were left out may be back, and their ranks must not be.
        others = [host.address for host in cluster.known_hosts if host.address not in ended.plan.hosts]
        absent = {*unreachable, *sweep(others)}
        decision = decide(
            cluster,
            history,
            absent,
            rank_counts() if cluster.restart.shrink else (),
            cluster.launcher.lease_s + 2 * TERM_GRACE_S,
        )
        if isinstance(decision, GiveUp):
            _say(f"not started again: {decision.reason}")
            return ended
        _say(_announcement(ended, decision, len(history), cluster))
        if _asked_to_stop_within(decision.delay_s):
            text = "stopped before the next attempt; the same command resumes from the last checkpoint"
            return replace(ended, verdict=Verdict(ExitCode.PREEMPTED, text))
        current = decision.cluster


def _announcement(ended: Attempted, restart: Restart, number: int, cluster: ClusterConfig) -> str:
    hosts = [host.address for host in restart.cluster.ordered_hosts]
    moved = hosts != [host.address for host in cluster.ordered_hosts]
    where = f" on {', '.join(hosts)}" if moved else ""
    ranks = restart.cluster.world_size
    fewer = f" with {ranks} ranks instead of {cluster.world_size}" if ranks != cluster.world_size else ""
    return (
        f"{ended.verdict.text}; restart {number} of {cluster.restart.max_restarts} "
        f"from step {ended.record.checkpoint_step} in {restart.delay_s:g} s{where}{fewer}"
    )


def _asked_to_stop_within(delay_s: float) -> bool:
    """Wait; True as soon as a signal asks this process to stop."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        return signal.sigtimedwait(_STOP_SIGNALS, delay_s) is not None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
