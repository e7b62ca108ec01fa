"""When a job goes back into the queue."""

import pytest

from launcher.submit.requeue import RunEnd, decide_requeue
from launcher.submit.submitted import Submitted, first_record

MAX, IN_VAIN = 5, 3


def record(**fields) -> Submitted:
    return first_record("slurm", "queue", ("sbatch",), "0", (), is_chain=False).changed(**fields)


def end(exit_code: int, **fields) -> RunEnd:
    known = {"hosts_lost": False, "cancelled": False, "state": "RUNNING", "checkpoint_step": 8}
    return RunEnd(exit_code, **{**known, **fields})


@pytest.mark.parametrize(
    ("ended", "before", "action", "why"),
    [
        (end(0), {}, "end", ""),
        (end(75), {}, "requeue", "it was stopped; requeue 1 of at most 5"),
        (end(75, cancelled=True), {}, "end", "it was cancelled"),
        (end(75, state="COMPLETING"), {}, "end", "the scheduler ends the job (COMPLETING)"),
        (end(75, state="unknown to Slurm"), {}, "end", "the scheduler ends the job (unknown to Slurm)"),
        (end(75), {"is_chain": True}, "end", "the next job of the chain goes on"),
        (end(75), {"requeues": 4}, "requeue", "it was stopped; requeue 5 of at most 5"),
        (end(75), {"requeues": 5}, "end", "all 5 requeues (submit.max_requeues) are used up"),
        (end(2), {}, "end", ""),
        (end(76), {}, "end", ""),
        (end(1), {}, "end", ""),
        (end(137), {}, "end", ""),
        (end(1, hosts_lost=True), {}, "requeue", "hosts were lost; requeue 1 of at most 5"),
        (end(143, hosts_lost=True), {}, "requeue", "hosts were lost; requeue 1 of at most 5"),
        (end(75, hosts_lost=True), {}, "requeue", "it was stopped; requeue 1 of at most 5"),
        (end(2, hosts_lost=True), {}, "end", ""),
        (end(76, hosts_lost=True), {}, "end", ""),
        (end(1, hosts_lost=True, cancelled=True), {}, "end", "it was cancelled"),
    ],
)
def test_only_stops_and_lost_hosts_requeue(ended, before, action, why):
    decision = decide_requeue(ended, record(**before), MAX, IN_VAIN)
    assert (decision.action, decision.why) == (action, why)
    kept = decision.record
    if action == "requeue":
        assert (kept.requeues, kept.exit_code) == (before.get("requeues", 0) + 1, None)
        assert kept.checkpoint_step == ended.checkpoint_step
    else:
        assert kept.exit_code == (None if before.get("is_chain") else ended.exit_code)
        assert kept.requeues == before.get("requeues", 0)


def test_no_job_goes_on_for_ever_without_a_newer_checkpoint():
    kept, starts = record(), 0
    steps = [4, 4, 8, 8, 8, 8, 8]  # of the newest checkpoint at the end of each start
    while True:
        decision = decide_requeue(end(75, checkpoint_step=steps[starts]), kept, 99, IN_VAIN)
        kept, starts = decision.record, starts + 1
        if decision.action == "end":
            break
    assert starts == 6 and kept.exit_code == 75
    assert decision.why == "3 starts in a row left no newer checkpoint (restart.max_without_progress)"
