"""Slurm's script: golden files, and what sbatch reads from odd names."""

import json
import shlex
from pathlib import Path

import pytest

from launcher.cluster.config import load_cluster
from launcher.cluster.hosts import Device, Host
from launcher.contract.config import ConfigError
from launcher.contract.run_dir import RunDir
from launcher.planning.plan import make_plan
from launcher.submit.scheduler import Submission
from launcher.submit.slurm_script import render_script
from support import CHECKOUT

GOLDEN = Path(__file__).parents[1] / "golden"
CONFIGS = CHECKOUT / "cluster_configs"


def submission(config: str, *overrides: str, root: str = "/shared/runs/mine", **fields) -> Submission:
    cluster = load_cluster(CONFIGS / f"{config}.yaml", overrides)
    assert cluster.submit is not None
    program = ("/shared/vpred/.venv/bin/vpred-launch",)
    return Submission(cluster, cluster.submit, "seed: 1\n", RunDir(Path(root)), program, **fields)


EVERYTHING = (
    "submit.slurm={account: chem, qos: long, mem: 64G, constraint: a&b, reservation: r1, dependency: 'afterany:3', "
    "mail: me@example.org, max_running: 2, exclusive: false, lead_s: 90, time: '1-0', arguments: ['--exclude=n[3-4]']}"
)


@pytest.mark.parametrize(
    ("golden", "made"),
    [
        ("slurm_cpu_2x1", submission("slurm_cpu_2x1")),
        ("slurm_ascend_4x8", submission("slurm_ascend_4x8")),
        ("slurm_array", submission("slurm_cpu_2x1", EVERYTHING, after=("7", "8"), tasks=4)),
        ("slurm_chain", submission("slurm_cpu_2x1", root='/a b/it\'s "x"', singleton=True)),
    ],
)
def test_scripts_are_golden(golden, made):
    assert render_script(made) == (GOLDEN / f"{golden}.sh").read_text()


@pytest.mark.parametrize("config", ["slurm_cpu_2x1", "slurm_ascend_4x8"])
def test_plans_of_steps_are_golden(config):
    """On hosts that an allocation might declare, whose text order is not Slurm's."""
    cluster = load_cluster(CONFIGS / f"{config}.yaml")
    assert cluster.submit is not None
    devices = [
        tuple(Device(id=n, ip=f"192.168.{h}.{n}") for n in range(cluster.devices_per_host or 0)) for h in range(9)
    ]
    hosts = [Host(address=f"n{h + 8}", devices=devices[h]) for h in range(cluster.submit.nodes)]
    plan = make_plan(
        cluster.on(hosts),
        mpirun=None,
        python=Path("/srv/venv/bin/python"),
        trainer=("/srv/venv/bin/python", "-P", "-m", "vpred_train"),
        run_dir=Path("/srv/runs/demo"),
        attempt=3,
        train_yaml="seed: 1\n",
    )
    assert plan.model_dump(mode="json") == json.loads((GOLDEN / f"plan_{config}.json").read_text())
    assert plan.files[Path("/srv/runs/demo/hostfile")].split() == [place.host for place in plan.ranks]


def test_the_script_ends_by_becoming_the_launcher():
    script = render_script(submission("slurm_ascend_4x8", "submit.setup=['module load cann', 'export A=\"b c\"']"))
    first, *directives = [line for line in script.splitlines() if not line.startswith("# ")]
    assert first == "#!/bin/bash"
    commands = [line for line in directives if not line.startswith("#SBATCH")]
    assert commands == [
        "unset SLURM_EXPORT_ENV",
        "export SRUN_CPUS_PER_TASK=8",
        "module load cann || exit 1",
        'export A="b c" || exit 1',
        "exec /shared/vpred/.venv/bin/vpred-launch run --submitted --run-dir /shared/runs/mine",
    ]
    # sbatch reads no directive behind the first command.
    assert directives[-len(commands) :] == commands


def test_a_path_with_spaces_and_quotes_stays_one_word():
    root = '/a b/it\'s "x" $HOME;#y\\z'
    script = render_script(submission("slurm_cpu_2x1", root=root))
    directives = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]
    # sbatch's quotes, backslashes and comments are the shell's.
    words = [word for line in directives for word in shlex.split(line, comments=True)]
    assert f"--chdir={root}" in words and f"--output={root}/submit/job-%j.out" in words
    assert shlex.split(script.splitlines()[-1])[-1] == root


def test_a_name_that_is_too_long_for_a_job_is_refused():
    assert "--job-name=vpred-" + 58 * "x" in render_script(submission("slurm_cpu_2x1", root=f"/runs/{58 * 'x'}"))
    with pytest.raises(ConfigError, match="65 characters; 64 are the most"):
        render_script(submission("slurm_cpu_2x1", root=f"/runs/{59 * 'x'}"))
