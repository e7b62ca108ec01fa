"""The restart policy: tables, and what holds for any history."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.cluster.config import ClusterConfig
from launcher.contract.config import ConfigError, build_document
from launcher.run.restart_policy import FailedAttempt, GiveUp, Restart, attempts_without_progress, decide


def failures(*hosts: str | None) -> list[FailedAttempt]:
    """Each with a newer checkpoint than the one before."""
    return [FailedAttempt(host, 10 * number, 10 * number + 10) for number, host in enumerate(hosts)]


def addresses(decision: Restart | GiveUp) -> list[str]:
    assert isinstance(decision, Restart)
    return [host.address for host in decision.cluster.hosts]


def test_the_budget(cluster):
    allowed = cluster(max_restarts=2)
    assert isinstance(decide(allowed, failures("n1", "n2")), Restart)
    assert decide(allowed, failures("n1", "n2", "n3")) == GiveUp("all 2 restarts are used up")
    assert isinstance(decide(cluster(max_restarts=0), failures("n1")), GiveUp)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([(0, 0)], 1),
        ([(0, 5)], 0),
        ([(5, 5)], 1),  # it went on from 5 and left nothing newer
        ([(0, 5), (5, 5), (5, 5)], 2),
        ([(0, 5), (5, 5), (5, 10)], 0),
        ([(0, 5), (5, 10), (5, 10)], 1),  # the checkpoint of 10 was corrupt, and was only made again
        ([(0, 0), (0, 0), (0, 0)], 3),
    ],
)
def test_progress_is_a_checkpoint_newer_than_all_before(steps, expected):
    assert attempts_without_progress([FailedAttempt(None, *pair) for pair in steps]) == expected


def test_attempts_in_vain_wait_longer_each_time_and_end(cluster):
    patient = cluster(first_delay_s=10.0, delay_factor=3.0, max_delay_s=50.0, max_without_progress=4)
    history = failures("n1")
    waits = []
    for _ in range(4):
        decision = decide(patient, history)
        assert isinstance(decision, Restart)
        waits.append(decision.delay_s)
        history.append(FailedAttempt(None, 10, 10))
    assert waits == [10.0, 10.0, 30.0, 50.0]
    assert decide(patient, history) == GiveUp("4 attempts in a row ended without a newer checkpoint")


@pytest.mark.parametrize(
    ("settings", "failed", "unreachable", "expected"),
    [
        ({}, ["n2"], [], ["n1", "n2", "n3"]),
        ({"spare": 1}, ["n2"], [], ["n1", "n2", "n3"]),
        ({"spare": 1}, ["n2", "n1", "n2"], [], ["n1", "n3", "s1"]),
        ({"spare": 1, "exclude_host_after": None}, ["n2", "n2", "n2"], [], ["n1", "n2", "n3"]),
        ({"spare": 1}, ["n2"], ["n2"], ["n1", "n3", "s1"]),
        ({"spare": 2}, ["n2"], ["n2", "s1"], ["n1", "n3", "s2"]),
        ({}, ["n2", "n2"], [], ["n1", "n3", "n2"]),  # nobody else is there
        ({"spare": 1}, ["n2", "n2", "s1", "s1"], [], ["n1", "n3", "n2"]),
        ({"shrink": True}, ["n2"], ["n2"], ["n1", "n3"]),
        ({"shrink": True, "min_ranks": 5}, ["n2"], ["n2"], ["n1", "n3", "n2"]),
    ],
)
def test_which_hosts_are_next(cluster, settings, failed, unreachable, expected):
    decision = decide(cluster(**settings), failures(*failed), unreachable, rank_counts=(1, 2, 4))
    assert addresses(decision) == expected


@pytest.mark.parametrize(
    ("hosts", "each", "left", "counts", "shape"),
    [
        (8, 8, 7, (1, 2, 4, 8, 16, 32, 64), (4, 8)),  # a global batch of 64
        (3, 4, 2, (1, 2, 3, 4, 6, 12), (2, 3)),  # of 12: six ranks, not eight
        (3, 8, 2, (1, 2, 3, 4, 6, 8, 12, 24), (2, 6)),
        (2, 2, 1, (2,), (1, 2)),
    ],
)
def test_fewer_ranks_are_the_most_that_share_the_batch(cluster, hosts, each, left, counts, shape):
    away = [f"n{number}" for number in range(left + 1, hosts + 1)]
    decision = decide(cluster(hosts, each, shrink=True), failures(away[0]), away, counts)
    assert isinstance(decision, Restart)
    assert (len(decision.cluster.hosts), decision.cluster.workers_per_host) == shape


def test_a_shrunk_ascend_cluster_keeps_the_first_devices_of_each_host():
    raw = {
        "name": "npu",
        "accelerator": "ascend",
        "hosts": [
            {"address": f"n{host}", "devices": [{"id": n, "ip": f"10.0.{host}.{n}"} for n in range(4)]}
            for host in range(3)
        ],
        "metrics": {"address": "::"},
        "restart": {"max_restarts": 1, "shrink": True},
    }
    decision = decide(build_document(ClusterConfig, raw, Path("npu.yaml")), failures("n1"), ["n1"], (1, 2, 3, 6, 12))
    assert isinstance(decision, Restart)
    assert {host.address: [each.id for each in host.devices] for host in decision.cluster.hosts} == {
        "n0": [0, 1, 2],
        "n2": [0, 1, 2],
    }


def test_ranks_that_may_still_live_are_outwaited(cluster):
    hasty = cluster(first_delay_s=1.0)
    assert decide(hasty, failures("n1"), (), fence_s=130.0).delay_s == 1.0
    assert decide(hasty, failures("n1"), ["n1"], fence_s=130.0).delay_s == 130.0


KNOWN = ["n1", "n2", "n3", "s1", "s2"]


@given(
    history=st.lists(
        st.builds(FailedAttempt, st.sampled_from([None, *KNOWN]), st.integers(0, 50), st.integers(0, 50)), min_size=1
    ),
    unreachable=st.sets(st.sampled_from(KNOWN)),
    shrink=st.booleans(),
    counts=st.sets(st.integers(1, 12)),
)
def test_what_holds_for_any_history(cluster, history, unreachable, shrink, counts):
    whole = cluster(each=4, spare=2, shrink=shrink, min_ranks=3, max_without_progress=4)
    decision = decide(whole, history, unreachable, counts, fence_s=500.0)
    if isinstance(decision, GiveUp):
        assert len(history) > 10 or attempts_without_progress(history) >= 4
        return
    nodes = addresses(decision)
    assert len(history) <= 10
    assert len(set(nodes)) == len(nodes) and set(nodes) <= set(KNOWN)
    assert decision.delay_s == 500.0 if unreachable else 0 <= decision.delay_s <= whole.restart.max_delay_s
    ranks = decision.cluster.world_size
    assert ranks == 12 or (shrink and 3 <= ranks < 12 and ranks in counts and not set(nodes) & unreachable)
    # It may be written into the run directory and read back.
    assert build_document(ClusterConfig, decision.cluster.model_dump(mode="json"), Path("x")) == decision.cluster


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"min_ranks": 7}, "restart.min_ranks: found 7 (there are 6 ranks)"),
        ({"max_restarts": -1}, "restart.max_restarts"),
        ({"spare_hosts": [{"address": "n1"}]}, "the address n1 is given 2 times"),
        ({"spare_hosts": [{"address": "localhost"}]}, "localhost among several hosts"),
    ],
)
def test_wrong_settings(cluster, settings, words):
    with pytest.raises(ConfigError, match=words.replace("(", r"\(").replace(")", r"\)")):
        cluster(**settings)
