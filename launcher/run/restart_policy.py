"""Decides whether, where and when to start again after a failed attempt. It is pure: no clock, no disk."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from launcher.cluster.config import ClusterConfig
from launcher.cluster.hosts import Host
from launcher.cluster.restart import RestartSettings


@dataclass(frozen=True)
class FailedAttempt:
    """Describes an attempt that failed.

    host: the host whose failure ended it, None when unknown
    resumed_step: step of the newest verified checkpoint when it began, 0 without one
    checkpoint_step: step of the newest verified checkpoint when it ended, 0 without one
    """

    host: str | None
    resumed_step: int
    checkpoint_step: int


@dataclass(frozen=True)
class Restart:
    """Starts the run again on `cluster` after `delay_s`. Its hosts and ranks may be fewer or different."""

    cluster: ClusterConfig
    delay_s: float


@dataclass(frozen=True)
class GiveUp:
    """Ends the run.

    reason: part of a sentence for the operator
    """

    reason: str


def decide(
    cluster: ClusterConfig,
    history: Sequence[FailedAttempt],
    unreachable: Collection[str] = (),
    rank_counts: Collection[int] = (),
    fence_s: float = 0.0,
) -> Restart | GiveUp:
    """Decide what follows the failed attempts in `history`.

    cluster: as the operator wrote it
    history: the failed attempts of this launch, oldest first
    unreachable: addresses that do not answer now
    fence_s: how long their ranks may still live, s; no others may start before that
    rank_counts: the numbers of ranks that divide the global batch
    """
    policy = cluster.restart
    if len(history) > policy.max_restarts:
        return GiveUp(f"all {policy.max_restarts} restarts are used up")
    in_vain = attempts_without_progress(history)
    if in_vain >= policy.max_without_progress:
        return GiveUp(f"{in_vain} attempts in a row ended without a newer checkpoint")
    delay_s = _delay_s(policy, in_vain)
    if unreachable:
        delay_s = max(delay_s, fence_s)
    return Restart(_next_cluster(cluster, _bad_hosts(policy, history) | set(unreachable), rank_counts), delay_s)


def attempts_without_progress(history: Sequence[FailedAttempt]) -> int:
    """Count the attempts at the end of `history` that left no checkpoint newer than all before."""
    newest, in_vain = -1, 0
    for attempt in history:
        newest = max(newest, attempt.resumed_step)
        in_vain = 0 if attempt.checkpoint_step > newest else in_vain + 1
        newest = max(newest, attempt.checkpoint_step)
    return in_vain


def _delay_s(policy: RestartSettings, in_vain: int) -> float:
    # The exponent is bounded so that the power cannot overflow.
    grown = policy.first_delay_s * policy.delay_factor ** min(max(in_vain - 1, 0), 100)
    return min(grown, policy.max_delay_s)


def _bad_hosts(policy: RestartSettings, history: Sequence[FailedAttempt]) -> set[str]:
    if policy.exclude_host_after is None:
        return set()
    failed = [attempt.host for attempt in history if attempt.host is not None]
    return {host for host in failed if failed.count(host) >= policy.exclude_host_after}


def _next_cluster(cluster: ClusterConfig, bad: set[str], rank_counts: Collection[int]) -> ClusterConfig:
    """Keep the number of hosts, good ones first. Where shrinking is allowed, take fewer ranks on good hosts alone."""
    good = [host for host in cluster.known_hosts if host.address not in bad]
    if len(good) < len(cluster.hosts) and cluster.restart.shrink:
        smaller = _shrunk(cluster, good, rank_counts)
        if smaller is not None:
            return smaller
    ordered = good + [host for host in cluster.known_hosts if host.address in bad]
    return _on(cluster, ordered[: len(cluster.hosts)], cluster.workers_per_host)


def _shrunk(cluster: ClusterConfig, good: Sequence[Host], rank_counts: Collection[int]) -> ClusterConfig | None:
    """Return the cluster with the most ranks that `good` can take, the same number on each host.

    If two clusters have that many ranks, the one with more ranks per host, so with fewer hosts, is taken.
    """
    most = min((cluster.ranks_on(host) for host in good), default=0)
    shapes = [(hosts * each, each, hosts) for hosts in range(1, len(good) + 1) for each in range(1, most + 1)]
    fitting = [shape for shape in shapes if shape[0] in rank_counts and shape[0] >= cluster.restart.min_ranks]
    if not fitting:
        return None
    _, each, hosts = max(fitting)
    if cluster.accelerator == "cpu":
        return _on(cluster, good[:hosts], each)
    return _on(cluster, [host.model_copy(update={"devices": host.devices[:each]}) for host in good[:hosts]], None)


def _on(cluster: ClusterConfig, hosts: Sequence[Host], workers_per_host: int | None) -> ClusterConfig:
    used = {host.address for host in hosts}
    spare = tuple(host for host in cluster.known_hosts if host.address not in used)
    restart = cluster.restart.model_copy(update={"spare_hosts": spare})
    changes = {"hosts": tuple(hosts), "workers_per_host": workers_per_host, "restart": restart}
    return cluster.model_copy(update=changes)
