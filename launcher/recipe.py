"""The recipe as seen from the launcher: text that the trainer itself resolves and checks."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from launcher.contract import yaml_dialect
from launcher.contract.config import ConfigError
from launcher.contract.exit_codes import ExitCode
from launcher.contract.run_dir import RunDir
from launcher.processes import as_child_of

_SHOWN_DIFFERENCES = 5


@dataclass(frozen=True)
class Trainer:
    """The command that trains (without its options), and the packages and system libraries it cannot do without.

    Libraries: file name -> the Debian package that has it.
    """

    argv: tuple[str, ...]
    packages: tuple[str, ...]
    libraries: Mapping[str, str]


TRAINER = Trainer(
    (sys.executable, "-P", "-m", "vpred_train"),
    ("mindspore", "mpi4py", "numpy"),
    {"libgomp.so.1": "libgomp1"},  # MindSpore's wheel links it and brings none
)


class RecipeError(Exception):
    """The trainer's check failed and has said why on stderr; `exit_code` is what to end with."""

    def __init__(self, exit_code: ExitCode) -> None:
        super().__init__(f"the trainer's check ended with exit code {exit_code}")
        self.exit_code = exit_code


def resolve_recipe(trainer: Trainer, recipe: Path, accelerator: str, world_size: int, overrides: Sequence[str]) -> str:
    """The resolved recipe as YAML text, from the trainer; its stderr goes to ours.

    Raises RecipeError: BAD_CONFIG when the trainer calls it the user's mistake, FAILED for anything else.
    """
    argv = [*trainer.argv, "--check", "--print-config", "--recipe", str(recipe)]
    argv += ["--accelerator", accelerator, "--world-size", str(world_size), *overrides]
    answer = _ask(argv)
    if answer.returncode == ExitCode.BAD_CONFIG:
        raise RecipeError(ExitCode.BAD_CONFIG)
    if answer.returncode != 0:
        raise RecipeError(ExitCode.FAILED)
    return answer.stdout


def rank_counts(trainer: Trainer, run: RunDir, most: int) -> list[int]:
    """The numbers of ranks up to `most` with which the trainer can go on with `run`; raises RecipeError."""
    argv = [*trainer.argv, "--print-rank-counts", "--run-dir", str(run.root), "--world-size", str(most)]
    answer = _ask(argv)
    if answer.returncode != 0:
        raise RecipeError(ExitCode.FAILED)
    return [int(line) for line in answer.stdout.split()]


def _ask(argv: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """The trainer's answer on its stdout; it does not outlive us."""
    return subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        preexec_fn=partial(as_child_of, os.getpid()),
    )


def require_same_recipe(run: RunDir, resolved: str) -> None:
    """Raise ConfigError when `run` holds another recipe than `resolved`, naming the keys that differ."""
    if not run.train_yaml.exists():
        return
    try:
        there = dict(_leaves(yaml_dialect.parse(run.train_yaml.read_text(encoding="utf-8"))))
    except ValueError as error:
        raise ConfigError(f"{run.train_yaml}: is damaged ({error}); give another --run-dir") from None
    here = dict(_leaves(yaml_dialect.parse(resolved)))
    absent = object()
    keys = [key for key in {**there, **here} if there.get(key, absent) != here.get(key, absent)]
    if not keys:
        return
    shown = [
        f"{key} ({there.get(key, 'absent')!r} there, {here.get(key, 'absent')!r} here)"
        for key in keys[:_SHOWN_DIFFERENCES]
    ]
    more = f" and {len(keys) - len(shown)} more" if len(keys) > len(shown) else ""
    raise ConfigError(f"{run.root}: belongs to a different recipe: {', '.join(shown)}{more}; give another --run-dir")


def _leaves(document: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(document, dict):
        yield prefix, document
        return
    for key, value in document.items():
        yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
