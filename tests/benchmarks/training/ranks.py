"""Ranks under mpirun that work for a benchmark: once, or on request so that several worlds take turns.

A benchmark's script starts itself again as each rank, with `--rank-of FOLDER` in front of its other arguments.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launcher.contract.accelerators import ACCELERATORS
from launcher.planning.mpirun import ROOT_VARIABLES, find_mpirun
from vpred_train import runtime
from vpred_train.distributed.collectives import Collective, make_collective

RANK_OPTION = "--rank-of"


class Ranks:
    """`count` ranks of `script`, each on `cores_per_rank` cores of its own (0: wherever the system puts it).

    A request is a JSON value that all ranks get; the answer is what rank 0 returns. Idle ranks block on a file: to wait
    in MPI they would spin, and slow the world whose turn it is.
    """

    def __init__(self, script: str, count: int, cores_per_rank: int, *arguments: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        pipes = [Path(self._folder.name) / str(rank) for rank in range(count)]
        for pipe in pipes:
            os.mkfifo(pipe)
        # For reading too, which does not wait for the rank: one that fails before it listens must not hang us.
        self._pipes = [os.fdopen(os.open(pipe, os.O_RDWR), "w") for pipe in pipes]
        mpirun = find_mpirun(None, os.environ)
        argv = [str(mpirun.path), "-np", str(count), *mpirun.dialect.oversubscribe, "--bind-to", "none"]
        argv += [sys.executable, script, RANK_OPTION, self._folder.name, str(cores_per_rank), *arguments]
        env = os.environ | (ROOT_VARIABLES if os.geteuid() == 0 else {})
        self._process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=env)
        self.ask(None)

    def ask(self, request: Any) -> Any:
        """Have all ranks do it; rank 0's answer."""
        for pipe in self._pipes:
            print(json.dumps(request), file=pipe, flush=True)
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        if not answer:
            sys.exit(f"the ranks ended with code {self._process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        """The ranks end after the request that they are at."""
        for pipe in self._pipes:
            pipe.close()
        self._process.wait()
        self._folder.cleanup()


class Rank:
    """One of the ranks, seen from inside: pinned to its cores, with MindSpore and the collective set up."""

    def __init__(self, folder: str, cores_per_rank: str) -> None:
        identity = runtime.identify()
        first, count = identity.local_rank * int(cores_per_rank), int(cores_per_rank)
        if count:
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[first : first + count])
        accelerator = ACCELERATORS["cpu"]
        self._pipe = Path(folder, str(identity.rank)).open()  # noqa: SIM115 - read until the process ends
        # Pinned, all the cores that this process may use are its own.
        runtime.start(accelerator, identity, identity.local_rank, None)
        self.collective: Collective = make_collective(accelerator.collective, identity.world_size)

    def requests(self) -> Iterator[Any]:
        """What the ranks are asked for, after the first greeting, until the benchmark ends."""
        self._pipe.readline()
        self.answer("ready")
        yield from map(json.loads, self._pipe)
        self.collective.close()

    def answer(self, value: Any) -> None:
        """Answer the last request; called by all ranks."""
        if self.collective.rank == 0:
            print(json.dumps(value), flush=True)


def as_rank() -> tuple[Rank, list[str]] | None:
    """This process as a rank, and its further arguments; None in the process that the user started."""
    if sys.argv[1:2] != [RANK_OPTION]:
        return None
    folder, cores_per_rank, *arguments = sys.argv[2:]
    return Rank(folder, cores_per_rank), arguments
