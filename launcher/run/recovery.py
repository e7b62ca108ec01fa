"""Repeats attempt, verdict and decision until a run is done, cannot go on, or is asked to stop."""

import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from launcher.cluster.config import ClusterConfig
from launcher.contract.exit_codes import ExitCode
from launcher.planning.plan import LaunchPlan
from launcher.rank.lease import fence_s
from launcher.records.attempt_record import AttemptRecord
from launcher.records.event_log import EventLog
from launcher.run.restart_policy import FailedAttempt, GiveUp, Restart, decide
from launcher.supervision.stop_requests import StopRequest
from launcher.supervision.verdict import Verdict

logger = logging.getLogger(__name__)

_FINAL = (ExitCode.BAD_CONFIG, ExitCode.PREEMPTED, ExitCode.DIVERGED)
_POLL_S = 0.1


@dataclass(frozen=True)
class Attempted:
    """Holds an attempt that has ended.

    lost: hosts that could not be reached after it
    """

    plan: LaunchPlan
    verdict: Verdict
    record: AttemptRecord
    lost: tuple[str, ...] = ()


def recover(
    cluster: ClusterConfig,
    attempt: Callable[[ClusterConfig], Attempted],
    sweep: Callable[[Sequence[str]], Sequence[str]],
    rank_counts: Callable[[], Collection[int]],
    stop: StopRequest,
    events: EventLog,
    beat: Callable[[], object],
    *,
    in_job: bool = False,
) -> Attempted:
    """Run `attempt` until it does not fail or `cluster.restart` allows no more. Returns the last one.

    sweep: clears the given hosts of the run's ranks and returns the hosts that it could not clear
    rank_counts: see `decide`; called only if the number of ranks may shrink
    beat: shows that the launcher lives; called often while no attempt runs
    in_job: the hosts are those of a scheduler's job, which gets others when it starts again

    No attempt follows BAD_CONFIG, DIVERGED, PREEMPTED or a request to stop.
    """
    history: list[FailedAttempt] = []
    current = cluster
    while True:
        ended = attempt(current)
        ended_s = time.monotonic()
        beat()
        if ended.verdict.exit_code == ExitCode.OK:
            return ended
        unreachable = sweep(ended.plan.hosts)
        # Slurm starts no step on the nodes of a job that it ends, and clears them itself.
        is_over = in_job and ended.verdict.exit_code == ExitCode.PREEMPTED
        if unreachable and not is_over:
            names, lease_s = ", ".join(unreachable), fence_s(cluster.launcher.lease_s)
            logger.warning(
                "could not be cleared: %s; ranks that still run there end themselves within %g s", names, lease_s
            )
        ended = replace(ended, lost=tuple(unreachable))
        if ended.verdict.exit_code in _FINAL or stop.count or not cluster.restart.max_restarts:
            return ended
        record = ended.record
        # When a host is cut off, ranks on other hosts may be the first to be seen waiting. So blame that host.
        host = unreachable[0] if unreachable else record.host
        history.append(FailedAttempt(host, record.resumed_step, record.checkpoint_step))
        # Hosts that this attempt left out may be back. Their old ranks must not run.
        others = [host.address for host in cluster.known_hosts if host.address not in ended.plan.hosts]
        absent = {*unreachable, *sweep(others)}
        decision = decide(
            cluster,
            history,
            absent,
            rank_counts() if cluster.restart.shrink else (),
            # The lease was not renewed after the attempt, so the time since then is part of the wait.
            max(0.0, ended_s + fence_s(cluster.launcher.lease_s) - time.monotonic()),
        )
        if in_job and isinstance(decision, Restart) and (gone := _gone(decision.cluster, absent)):
            decision = GiveUp(f"{gone} cannot be reached, and no other host of the job can take its place")
        if isinstance(decision, GiveUp):
            events.write("restart_refused", ended.record.attempt, why=decision.reason)
            logger.error("not started again: %s", decision.reason)
            return ended
        _record_restart(events, ended, decision, len(history), cluster)
        logger.warning("%s", _announcement(ended, decision, len(history), cluster))
        if _asked_to_stop_within(decision.delay_s, stop, beat):
            text = "stopped before the next attempt; the same command resumes from the last checkpoint"
            return replace(ended, verdict=Verdict(ExitCode.PREEMPTED, text))
        current = decision.cluster


def _gone(cluster: ClusterConfig, absent: Collection[str]) -> str | None:
    """Return the first host of `cluster` that cannot be reached."""
    return next((host.address for host in cluster.ordered_hosts if host.address in absent), None)


def _record_restart(events: EventLog, ended: Attempted, restart: Restart, number: int, cluster: ClusterConfig) -> None:
    events.write(
        "restart_decided",
        ended.record.attempt,
        number=number,
        max_restarts=cluster.restart.max_restarts,
        why=ended.verdict.text,
        from_step=ended.record.checkpoint_step,
        delay_s=restart.delay_s,
        hosts=tuple(host.address for host in restart.cluster.ordered_hosts),
        ranks=restart.cluster.world_size,
    )


def _announcement(ended: Attempted, restart: Restart, number: int, cluster: ClusterConfig) -> str:
    hosts = [host.address for host in restart.cluster.ordered_hosts]
    moved = hosts != [host.address for host in cluster.ordered_hosts]
    where = f" on {', '.join(hosts)}" if moved else ""
    ranks = restart.cluster.world_size
    fewer = f" with {ranks} ranks instead of {cluster.world_size}" if ranks != cluster.world_size else ""
    return (
        f"{ended.verdict.text}; restart {number} of {cluster.restart.max_restarts} "
        f"from step {ended.record.checkpoint_step} in {restart.delay_s:.3g} s{where}{fewer}"
    )


def _asked_to_stop_within(delay_s: float, stop: StopRequest, beat: Callable[[], object]) -> bool:
    """Wait for `delay_s`. Returns True as soon as there is a request to stop."""
    deadline_s = time.monotonic() + delay_s
    while not stop.count and (left_s := deadline_s - time.monotonic()) > 0:
        beat()
        time.sleep(min(_POLL_S, left_s))
    return stop.count > 0
