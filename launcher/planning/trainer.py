"""Asks the trainer to resolve and check the recipe, which is only text to the launcher."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from launcher.contract import yaml_dialect
from launcher.contract.exit_codes import ExitCode
from launcher.contract.run_dir import RunDir, Summary
from launcher.processes.tied import as_child_of, own_program


@dataclass(frozen=True)
class Trainer:
    """Describes the command that trains and what it needs.

    argv: the command without its options
    doctor: the command that examines a rank's machine, with the same options
    packages: Python packages that it needs
    libraries: system libraries that it needs, file name -> the Debian package that has it
    launch: argv of `vpred-launch` with this trainer, for a job on another machine
    """

    argv: tuple[str, ...]
    doctor: tuple[str, ...]
    packages: tuple[str, ...]
    libraries: Mapping[str, str]
    launch: tuple[str, ...] = (str(Path(sys.executable).with_name("vpred-launch")),)


TRAINER = Trainer(
    (sys.executable, "-P", "-m", "vpred_train"),
    own_program(sys.executable, "vpred_train.commands.doctor"),
    ("mindspore", "mpi4py", "numpy"),
    {"libgomp.so.1": "libgomp1"},  # MindSpore's wheel links it, but does not contain it
)


class RecipeError(Exception):
    """Says that the trainer's check failed. The trainer has given the reason on stderr.

    exit_code: the code with which the launcher must end
    """

    def __init__(self, exit_code: ExitCode) -> None:
        super().__init__(f"the trainer's check ended with exit code {exit_code}")
        self.exit_code = exit_code


def resolve_recipe(
    trainer: Trainer,
    recipe: Path,
    device: Sequence[str],
    world_size: int,
    run: RunDir,
    overrides: Sequence[str],
    *,
    data: bool = True,
) -> str:
    """Have the trainer resolve the recipe to YAML text with which `run` can go on. Its stderr goes to this process's.

    device: the trainer's options on where and how it computes
    data: also check the data and weights that the recipe names; without it they may be absent here

    Raises RecipeError: when the check fails; BAD_CONFIG when the trainer calls it the user's mistake, else FAILED.
    """
    argv = [*trainer.argv, "--check" if data else "--without-weights", "--print-config", "--recipe", str(recipe)]
    argv += [*device, "--world-size", str(world_size), "--run-dir", str(run.root), *overrides]
    answer = _ask(argv)
    if answer.returncode == ExitCode.BAD_CONFIG:
        raise RecipeError(ExitCode.BAD_CONFIG)
    if answer.returncode != 0:
        raise RecipeError(ExitCode.FAILED)
    return answer.stdout


def rank_counts(trainer: Trainer, run: RunDir, most: int) -> list[int]:
    """Return the numbers of ranks up to `most` with which the trainer can go on with `run`.

    Raises RecipeError: when the trainer fails.
    """
    argv = [*trainer.argv, "--print-rank-counts", "--run-dir", str(run.root), "--world-size", str(most)]
    answer = _ask(argv)
    if answer.returncode != 0:
        raise RecipeError(ExitCode.FAILED)
    return [int(line) for line in answer.stdout.split()]


def _ask(argv: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """Run `argv` and capture its stdout. It does not outlive this process."""
    return subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        preexec_fn=partial(as_child_of, os.getpid()),
    )


def is_complete(run: RunDir, resolved: str) -> Summary | None:
    """Return the summary of a complete `run`. None: it is not complete, or `resolved` makes it longer."""
    summary = Summary.read(run.summary_json)
    if summary is None or yaml_dialect.parse(resolved).get("total_samples", 0) > summary.samples_seen:
        return None
    return summary


def read_recipe(run: RunDir) -> bytes | None:
    """Read the recipe with which `run` was started last, unparsed. None: it was never started."""
    try:
        return run.train_yaml.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
