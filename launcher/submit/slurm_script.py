"""Renders Slurm's batch script. It is pure."""

import shlex
from collections.abc import Iterator

from launcher.cluster.slurm import lead_s
from launcher.contract.config import ConfigError
from launcher.submit.scheduler import Submission

_LONGEST_NAME = 64


def render_script(submission: Submission) -> str:
    """Render the script. It execs the launcher, since a shell between Slurm and the launcher dies of the first signal.

    Raises ConfigError: when the run directory makes no name of a job.
    """
    settings, root = submission.settings, submission.run.root
    lines = ["#!/bin/bash", f"# vpred-launch submit: run {root}"]
    lines += [f"#SBATCH {each}" for each in _directives(submission)]
    # Without this srun starts ranks without PATH.
    lines.append("unset SLURM_EXPORT_ENV")
    if settings.slurm.cpus_per_task is not None:
        # srun takes no number of cores from the job.
        lines.append(f"export SRUN_CPUS_PER_TASK={settings.slurm.cpus_per_task}")
    # No `set -u`: a toolkit's set_env.sh reads variables that are not set.
    lines += [f"{each} || exit 1" for each in settings.setup]
    run_dir = shlex.quote(str(root))
    if submission.tasks is not None:
        run_dir += '/"$(printf %04d "$SLURM_ARRAY_TASK_ID")"'
    lines.append(f"exec {shlex.join(submission.program)} run --submitted --run-dir {run_dir}")
    return "\n".join(lines) + "\n"


def job_name(submission: Submission) -> str:
    """Name the job after the run directory. Raises ConfigError: when that is longer than Slurm shows."""
    name = f"vpred-{submission.run.root.name}"
    if len(name) > _LONGEST_NAME:
        raise ConfigError(
            f"--run-dir: found {submission.run.root.name!r} (the job would be called {name!r}, "
            f"{len(name)} characters; {_LONGEST_NAME} are the most)",
            "give a shorter name",
        )
    return name


def _directives(submission: Submission) -> Iterator[str]:
    cluster, settings, root = submission.cluster, submission.settings, str(submission.run.root)
    slurm = settings.slurm
    array = submission.tasks is not None
    yield f"--job-name={_quoted(job_name(submission))}"
    yield f"--chdir={_quoted(root)}"
    # In an array each run has its own directory, RUN/0000 and so on.
    yield f"--output={_quoted(f'{root}/%4a/submit/job-%A_%a.out' if array else f'{root}/submit/job-%j.out')}"
    yield "--open-mode=append"  # a requeue must not wipe it
    yield f"--nodes={settings.nodes + settings.spare_nodes}"
    yield f"--ntasks-per-node={cluster.ranks_per_node}"
    if submission.tasks is not None:
        yield f"--array=0-{submission.tasks - 1}" + (f"%{slurm.max_running}" if slurm.max_running else "")
    for name, value in (
        ("cpus-per-task", slurm.cpus_per_task),
        ("gres", slurm.gres),
        ("mem", slurm.mem),
        ("partition", slurm.partition),
        ("account", slurm.account),
        ("qos", slurm.qos),
        ("constraint", slurm.constraint),
        ("reservation", slurm.reservation),
        ("time", slurm.time),
    ):
        if value is not None:
            yield f"--{name}={_quoted(str(value))}"
    if slurm.exclusive:
        yield "--exclusive"
    yield f"--signal=B:USR1@{lead_s(slurm, cluster.launcher.stop_grace_s)}"  # to the launcher alone
    yield "--requeue"  # after a node failure, and when a job with more priority wants the nodes
    yield "--no-kill"  # the launcher goes on without a lost node
    yield "--export=NONE"  # nothing of the login shell
    if dependency := _dependency(submission):
        yield f"--dependency={_quoted(dependency)}"
        yield "--kill-on-invalid-dep=yes"
    if slurm.mail is not None:
        yield f"--mail-user={_quoted(slurm.mail)}"
        yield "--mail-type=BEGIN,END,FAIL,REQUEUE"
    yield from slurm.arguments


def _dependency(submission: Submission) -> str:
    after = f"afterok:{':'.join(submission.after)}" if submission.after else ""
    singleton = "singleton" if submission.singleton else ""
    return ",".join(filter(None, [submission.settings.slurm.dependency, after, singleton]))


def _quoted(value: str) -> str:
    """Quote a value of a directive where it needs it. sbatch reads quotes and backslashes as a shell does."""
    if shlex.quote(value) == value:
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
