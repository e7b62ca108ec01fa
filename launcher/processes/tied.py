"""Starts programs that cannot outlive this process, and finds those of a run that outlived theirs."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO

from launcher.contract.process import default_signals, die_with_parent


def own_program(python: Path | str, module: str) -> tuple[str, ...]:
    """Return the argv, without options, that runs one of the project's modules here or on another host.

    PYTHONPATH or the current directory there may hold other modules of the same name. Only the name `vpred_train` is
    sure to be the project's.
    """
    return (str(python), "-P", "-m", "vpred_train.entry", module)


def start_tied(
    argv: Sequence[str], env: Mapping[str, str], cwd: Path, stdout: IO[bytes] | int, stderr: IO[bytes] | int
) -> subprocess.Popen[bytes]:
    """Start `argv` in `cwd` and in a new session, so that Ctrl-C reaches this process alone.

    The kernel kills the program when this process dies. The program inherits no ignored or blocked signal.
    Call this from the main thread and before any other thread exists.
    Raises OSError: when the program cannot be started.
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
    """Reset signals for a new program and tie it to its parent's life. Call it between fork and exec."""
    default_signals()
    die_with_parent(parent_pid)


def kill_session(process: subprocess.Popen[bytes]) -> None:
    """Send SIGKILL to the process group that `start_tied` made, and reap its leader."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def workers_of(run_dir: Path, attempt: int | None = None) -> list[int]:
    """Find the pids on this host whose command line is a rank of this attempt of the run.

    attempt: None finds ranks of any attempt

    It reads /proc: off Linux it finds none.
    """
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue  # it ended meanwhile
        pairs = [words[index : index + 2] for index in range(len(words) - 1)]
        attempts = [value for option, value in pairs if option == "--attempt"]
        ours = ["--run-dir", str(run_dir)] in pairs and (str(attempt) in attempts if attempt else bool(attempts))
        if ours and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found
