"""A rank of the doctor with a small table of checks without MindSpore. The recipe's key `fault` says what goes wrong.

Faults of rank 1: wrong, raise, slow, differs, kill, hang, absent (hangs while the others exchange), refuse (raises
where all ranks are needed), again (after the restart). Others: none, everywhere (wrong on all ranks).
"""

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from launcher.contract.accelerators import ACCELERATORS
from launcher.contract.doctor_record import DoctorRecord
from launcher.contract.environment import environment
from launcher.contract.identity import read_identity
from launcher.contract.process import die_with_parent, enable_stack_dumps
from launcher.contract.run_dir import RunDir
from monitoring import configure_logging
from vpred_train.distributed.collectives import make_collective
from vpred_train.doctor.check import Check, Item, Measured, left_out
from vpred_train.doctor.examination import examine
from vpred_train.doctor.recorder import Recorder
from vpred_train.doctor.station import Station


def checks(fault: str, rank: int) -> dict[str, Check]:
    """The table. `bad` is the fault that this rank has."""
    bad = fault if rank == 1 or fault == "everywhere" else "none"

    def sums() -> Measured:
        if bad == "raise":
            raise ValueError("cannot add\nand more lines")
        if bad == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if bad == "hang":
            time.sleep(1e4)
        wrong = bad in ("wrong", "everywhere")
        return Measured("1 + 1 is 3" if wrong else "1 + 1 is 2", "failed" if wrong else "ok", "2")

    def version() -> Measured:
        return Measured("2.10.1" if bad == "differs" else "2.10.0", same="2.10.1" if bad == "differs" else "2.10.0")

    def rate() -> Measured:
        figure = 1.0 if bad == "slow" else 5.0 + 0.1 * rank
        return Measured(f"{figure} GB/s", figure=figure, unit="GB/s", least_share=0.5)

    def exchange(station: Station) -> Measured:
        if bad == "absent":
            time.sleep(1e4)
        if bad == "refuse":
            raise RuntimeError("no route")
        station.collective.barrier()
        return Measured("exact")

    def of(function: Callable[[], Measured], subject: str, remedy: str) -> Callable[[Station], Sequence[Item]]:
        return lambda station: [Item(subject, function, remedy)]

    shared = [Item(f"item {number}", lambda: Measured("fine")) for number in range(5)]
    return {
        "versions": Check(of(version, "packages", "install the same everywhere")),
        "operations": Check(of(sums, "sum", "update the adder")),
        "shared": Check(lambda station: shared, shared=True),
        "speed": Check(of(rate, "copy", "bind the rank"), at_once=True),
        "exchange": Check(
            lambda station: [Item("barrier", lambda: exchange(station), "repair the link")], collective=True
        ),
        "left": Check(of(lambda: left_out("not here"), "nothing", "")),
    }


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--before", type=int)
    options, _ = parser.parse_known_args()
    die_with_parent(os.getppid())
    enable_stack_dumps()
    run, identity = RunDir(options.run_dir), read_identity(environment())
    configure_logging(identity.rank, logging.INFO)
    fault = yaml.safe_load(run.train_yaml.read_text())["fault"]
    collective = make_collective("mpi4py", identity.world_size)
    recorder = Recorder(identity, run.attempt(options.attempt))
    recorder.timer = collective.timer
    before = options.before and DoctorRecord.read(run.attempt(options.before).doctor(identity.rank))
    config: Any = None
    station = Station(config, ACCELERATORS["cpu"], identity, 0, collective, "mpi4py", run, recorder, 0.1, before)
    if before is None:
        return examine(station, checks(fault, identity.rank))
    stale = fault == "again" and identity.rank == 1
    result = Measured("other bits" if stale else "the same bits", "failed" if stale else "ok")
    return examine(station, {"restart": Check(lambda station: [Item("graph", lambda: result, "remove it")])})


if __name__ == "__main__":
    sys.exit(main())
