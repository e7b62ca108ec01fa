"""Starting programs that cannot outlive us, and finding those of a run that did."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO

from launcher.contract.process import default_signals, die_with_parent


def own_program(python: Path | str, module: str) -> tuple[str, ...]:
    """The argv, without its options, that runs a module of ours here or on another host, whatever lies on PYTHONPATH or
    in the current directory there: only `vpred_train` is a name that is sure to be ours."""
    return (str(python), "-P", "-m", "vpred_train.entry", module)


def start_tied(
    argv: Sequence[str], env: Mapping[str, str], cwd: Path, stdout: IO[bytes] | int, stderr: IO[bytes] | int
) -> subprocess.Popen[bytes]:
    """Start `argv` in a session of its own (Ctrl-C is ours to handle), killed by the kernel when we die.

    It starts in `cwd` and inherits no ignored or blocked signal.

    Call it from the main thread and before any other thread exists. Raises OSError.
    """
    return subprocess.Popen(
        argv,
        env=env,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
        preexec_fn=partial(as_child_of, os.getpid()),
    )


def as_child_of(parent_pid: int) -> None:
    """Between fork and exec: signals as a new program expects them, and no life beyond the parent's."""
    default_signals()
    die_with_parent(parent_pid)


def kill_session(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the process group that `start_tied` made, and reap its leader."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def workers_of(run_dir: Path, attempt: int | None = None) -> list[int]:
    """Pids on this host whose command line is a rank of this attempt, or of any (Linux; elsewhere none are found)."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue  # it ended while we looked
        pairs = [words[index : index + 2] for index in range(len(words) - 1)]
        attempts = [value for option, value in pairs if option == "--attempt"]
        ours = ["--run-dir", str(run_dir)] in pairs and (str(attempt) in attempts if attempt else bool(attempts))
        if ours and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found
