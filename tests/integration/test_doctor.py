"""`vpred-launch doctor` for real: one process, two ranks under mpirun, two under msrun, and with planted faults."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launcher.processes.tied import workers_of
from support import PROGRAMS, PYTHONPATH
from support.jobs import DEADLINE_S, SMALL_RECIPE, free_ports

MSRUN = [
    "cluster.launcher.kind=msrun",
    "cluster.environment={MS_RETRY_INTERVAL_LOWER: '1', MS_RETRY_INTERVAL_UPPER: '1'}",
]
WORLDS = {
    "one process": (1, ["cluster.workers_per_host=1", "cluster.launcher.kind=local"]),
    "mpirun": (2, []),
    "msrun": (2, MSRUN),
    "msrun, engine device": (2, [*MSRUN, "cluster.engine=device"]),
}
# Not compared here: these machines' cores are shared with other tests.
CHECKS = {
    *("versions", "start", "number formats", "operations", "extreme shapes", "fused operations", "speed"),
    *("collectives", "training step", "memory", "restart"),
}


def examine(folder: Path, program: list[str], *options: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, report and stderr of one doctor."""
    (folder / "recipe.yaml").write_text(SMALL_RECIPE)
    ports = free_ports(3)
    argv = [sys.executable, "-P", *program, "doctor", "--recipe", str(folder / "recipe.yaml"), "--json"]
    argv += ["--run-dir", str(folder / "run"), f"cluster.metrics.base_port={ports}"]
    argv += [f"cluster.network.scheduler_port={ports + 2}", *options]
    env = os.environ | {"PYTHONPATH": PYTHONPATH}
    answer = subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=2 * DEADLINE_S, env=env)
    assert answer.stdout, answer.stderr
    assert workers_of(folder / "run") == []
    return answer.returncode, json.loads(answer.stdout), answer.stderr


@pytest.mark.mpi
@pytest.mark.parametrize("world", WORLDS)
def test_sound_machines_are_found_sound(world: str, tmp_path: Path) -> None:
    ranks, options = WORLDS[world]
    code, report, errors = examine(tmp_path, ["-m", "launcher.cli"], *options)
    slow = [each for each in report["findings"] if "of the other ranks' median" in each["found"]]
    assert report["findings"] == slow, errors  # a core that another test takes is slow, and that is true
    assert code == (1 if slow else 0) and report["ranks"] == ranks
    checks = {line["check"] for line in report["checks"]} - {"preflight"}
    assert checks == CHECKS
    left_out = {line["subject"] for line in report["checks"] if line["state"] == "left out"}
    expected = {"CANN and driver", "bfloat16 keeps its values", "device to host"} | ({""} if ranks == 1 else set())
    assert left_out == expected
    operations = [line for line in report["checks"] if line["check"] == "operations"]
    assert len(operations) == 2 * len({line["subject"].split(",")[0] for line in operations})
    assert max(line["figure"] for line in operations) < 0.5
    if ranks == 2:
        step = next(line for line in report["checks"] if line["check"] == "training step")
        assert step["ranks"] == 2
        in_graphs = "all-reduce in a graph, float32" in {line["subject"] for line in report["checks"]}
        assert in_graphs == world.startswith("msrun")


@pytest.mark.mpi
def test_a_wrong_layer_a_wrong_collective_and_a_slow_rank_are_named(tmp_path: Path) -> None:
    code, report, errors = examine(tmp_path, [str(PROGRAMS / "planted_doctor_launch.py")])
    assert code == 1, errors
    found = {(each["check"], each["subject"]): each for each in report["findings"]}
    gelu = found["operations", "GELU, float32"]
    assert gelu["host"] == "localhost" and gelu["found"].startswith("forward 1") and gelu["remedy"]
    wrong = found["collectives", "all-reduce"]
    assert wrong["rank"] == 1 and wrong["found"].startswith("1 of 2053 values are wrong, the first at 7: ")
    slow = found["speed", "matrix products, float32"]
    assert slow["rank"] == 1 and slow["host"] == "localhost" and "of the other ranks' median" in slow["found"]
    sound = {("speed", each["subject"]) for each in report["findings"] if each["check"] == "speed"}
    assert found.keys() - sound == {("operations", "GELU, float32"), ("collectives", "all-reduce")}
