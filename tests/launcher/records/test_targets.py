"""Targets for Prometheus: what a rank reports replaces what was planned for it."""

from pathlib import Path

import pytest

from launcher.contract.run_dir import RankStatus
from launcher.records.plan_record import PlannedRank
from launcher.records.targets import RUN_DIR_LABEL, render, run_dir_of, target_groups

PLACE = PlannedRank(rank=5, host="10.0.0.2", local_rank=1, device_id=3, metrics="10.0.0.2:9401")
STATUS = RankStatus(
    rank=5, hostname="n2", pid=1, phase="training", step=1, total_steps=2, samples_seen=1, updated_unix_s=0.0
)  # fmt: skip
LABELS = {"job": "vpred", "run": "x", "rank": "5", "local_rank": "1", "device_id": "3", RUN_DIR_LABEL: "/runs/x"}


@pytest.mark.parametrize(
    ("status", "target", "more"),
    [
        (None, "10.0.0.2:9401", {}),
        (STATUS, "10.0.0.2:9401", {"hostname": "n2"}),
        (STATUS.model_copy(update={"metrics_port": 9417}), "10.0.0.2:9417", {"hostname": "n2"}),
    ],
)
def test_a_rank_is_one_group_with_its_names(status: RankStatus | None, target: str, more: dict[str, str]) -> None:
    statuses = {} if status is None else {5: status}
    groups = target_groups("x", Path("/runs/x"), [PLACE], statuses)
    assert groups == [{"targets": [target], "labels": LABELS | more}]
    assert run_dir_of(render(groups)) == "/runs/x"


def test_tls_and_ipv6_are_declared() -> None:
    place = PLACE.model_copy(update={"metrics": "[fd00::2]:9401"})
    (group,) = target_groups("x", Path("/runs/x"), [place], {5: STATUS}, tls=True)
    assert group["targets"] == ["[fd00::2]:9401"]
    assert group["labels"]["__scheme__"] == "https"


def test_a_rank_without_metrics_is_no_target() -> None:
    assert target_groups("x", Path("/runs/x"), [PLACE.model_copy(update={"metrics": None})], {}) == []


@pytest.mark.parametrize("text", ["", "[]", "{}", "[1]", '[{"labels": {}}]', '[{"labels": null}]', "null", "[[]]"])
def test_any_other_text_belongs_to_no_run(text: str) -> None:
    assert run_dir_of(text) is None
