"""A trainer without training: the same command line, files, signals and exit codes, and faults on demand.

The recipe is a flat YAML file: steps, step_s, fault, fault_rank, fault_attempts (later attempts have none) and
save_every (steps; a checkpoint is an empty manifest, of which ranks tell a step later, as the trainer's do), and
saves_on_stop, with which it also obeys SIGTERM and saves before it leaves, as the trainer does. Faults:
none, raise, kill, exit, leave (as if done), deaf, check_crash, busy (works on without end), frozen (SIGSTOP), slow (ten
times as long at its own work), fill (leaves no room where the run is). Every step is one Allreduce, so a rank that dies
leaves its peers inside a collective.
"""

import argparse
import contextlib
import os
import signal
import socket
import sys
import threading
import time
import traceback
from array import array
from pathlib import Path

import yaml

from launcher.contract import yaml_dialect
from launcher.contract.exit_codes import ExitCode
from launcher.contract.files import write_atomic
from launcher.contract.process import die_with_parent, enable_stack_dumps
from launcher.contract.run_dir import RankStatus, RunDir, Summary

DEFAULTS = {"steps": 6, "step_s": 0.02, "fault": "none", "fault_rank": 1, "fault_attempts": 99, "save_every": 2}
DEFAULTS |= {"saves_on_stop": False}
FAULT_STEP = 3


def check(options: argparse.Namespace, overrides: list[str]) -> int:
    recipe = DEFAULTS | (yaml.safe_load(options.recipe.read_text()) or {})
    recipe |= {key: yaml.safe_load(value) for key, value in (each.split("=") for each in overrides)}
    if unknown := set(recipe) - set(DEFAULTS):
        print(f"{options.recipe}: {unknown.pop()}: unknown key", file=sys.stderr)
        return ExitCode.BAD_CONFIG
    there = options.run_dir and RunDir(options.run_dir).train_yaml
    if there and there.exists():
        try:
            begun = yaml_dialect.parse(there.read_text())
        except ValueError as error:
            print(f"{there}: is damaged ({error})", file=sys.stderr)
            return ExitCode.BAD_CONFIG
        if begun != recipe:
            print(f"{options.run_dir}: belongs to a different recipe: {begun} there, {recipe} here", file=sys.stderr)
            return ExitCode.BAD_CONFIG
    if recipe["fault"] == "check_crash":
        raise RuntimeError("the check itself is broken")
    yaml.safe_dump(recipe, sys.stdout, sort_keys=False)
    return ExitCode.OK


def train(options: argparse.Namespace) -> int:
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    run = RunDir(options.run_dir)
    recipe = yaml.safe_load(run.train_yaml.read_text())
    statuses = [run.attempt(options.attempt).status(rank) for rank in range(comm.size)]
    stop: list[int] = []
    saves: list[int] = []
    now = {"phase": "compiling", "step": 0, "waiting": False, "own_seconds": 0.0, "checkpoint_step": None}
    writing = threading.Lock()
    signal.signal(signal.SIGUSR1, lambda number, frame: stop.append(number))
    if recipe["saves_on_stop"]:
        signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
    signal.signal(signal.SIGUSR2, lambda number, frame: saves.append(number))
    faulty = comm.rank == recipe["fault_rank"] and options.attempt <= recipe["fault_attempts"]
    resumed = committed = run.committed_step()
    now["checkpoint_step"] = resumed or None
    phases = {"starting": time.time()}
    comm.barrier()  # all have read it before one writes it
    if recipe["fault"] == "deaf":
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def write() -> None:
        step = now["step"]
        with writing:
            RankStatus(
                rank=comm.rank,
                hostname=socket.gethostname(),
                pid=os.getpid(),
                total_steps=recipe["steps"],
                samples_seen=4 * step,
                timed_steps=step,
                loss=1 / (1 + step),
                images_per_second=10.0,
                resumed_step=resumed,
                phase_unix_s=phases,
                updated_unix_s=time.time(),
                **now,
            ).write(statuses[comm.rank])

    def beat() -> None:
        while True:
            time.sleep(0.3)
            write()

    def tell(phase: str, step: int) -> None:
        phases.setdefault(phase, time.time())
        now.update(phase=phase, step=step)
        write()

    tell("compiling", resumed)
    threading.Thread(target=beat, daemon=True).start()
    for step in range(resumed + 1, recipe["steps"] + 1):
        now["waiting"] = True
        comm.Allreduce(MPI.IN_PLACE, stopping := array("i", [len(stop)]), op=MPI.MAX)
        now["waiting"] = False
        now["checkpoint_step"] = committed or None
        if stopping[0]:
            # As the trainer does: the default, which Python restores at its end, would kill a rank that is done.
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            if recipe["saves_on_stop"]:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                if comm.rank == 0 and step - 1 > committed:
                    run.manifest(step - 1).parent.mkdir(parents=True)
                    write_atomic(run.manifest(step - 1), "", fsync=False)
            return ExitCode.PREEMPTED
        if saves or (recipe["save_every"] and step % recipe["save_every"] == 0):
            saves.clear()
            committed = step
            if comm.rank == 0:
                run.manifest(step).parent.mkdir(parents=True)
                write_atomic(run.manifest(step), "", fsync=False)
        tell("training", step)
        if step == FAULT_STEP and faulty:
            if recipe["fault"] == "raise":
                raise ValueError("a tensor went missing")
            if recipe["fault"] == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if recipe["fault"] == "exit":
                os._exit(ExitCode.DIVERGED)
            if recipe["fault"] == "leave":
                os._exit(ExitCode.OK)
            if recipe["fault"] == "busy":
                work_without_end()
            if recipe["fault"] == "frozen":
                os.kill(os.getpid(), signal.SIGSTOP)
            if recipe["fault"] == "fill":
                # Not before the others' last status, step 3, is on the disk.
                while min(RankStatus.read(status).step for status in statuses) < step:
                    time.sleep(0.01)
                with (run.root / "filler").open("wb", buffering=0) as file:
                    while True:
                        file.write(bytes(4096))
        own_s = recipe["step_s"] * (10 if recipe["fault"] == "slow" and faulty else 1)
        time.sleep(own_s)
        now["own_seconds"] += own_s
    if comm.rank == 0:
        tell("done", recipe["steps"])
        Summary(
            steps=recipe["steps"],
            samples_seen=4 * recipe["steps"],
            final_loss=0.125,
            seconds=1.5,
            retrieval=0.75,
            report=Path("report.html"),
            samples=Path("samples"),
            weights=Path("weights"),
        ).write(run.summary_json)
    comm.barrier()
    return ExitCode.OK


def work_without_end() -> None:
    while True:
        time.sleep(0.1)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--print-config", action="store_true")
    parser.add_argument("--without-weights", action="store_true")
    parser.add_argument("--print-rank-counts", action="store_true")
    parser.add_argument("--recipe", type=Path)
    parser.add_argument("--world-size", type=int)
    parser.add_argument("--run-dir", type=Path)
    parser.add_argument("--attempt", type=int)
    parser.add_argument("--accelerator")
    parser.add_argument("--engine")
    parser.add_argument("--metrics-address")
    parser.add_argument("--metrics-port-base", type=int)
    parser.add_argument("--metrics-port-span", type=int)
    parser.add_argument("--metrics-linger-s", type=float)
    parser.add_argument("--run-name")
    parser.add_argument("--collective-timeout-s", type=float)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    if options.print_rank_counts:  # a global batch of 4
        print(*(count for count in (1, 2, 4) if count <= options.world_size))
        return ExitCode.OK
    if options.check or options.print_config:
        return check(options, options.overrides)
    die_with_parent(os.getppid())
    enable_stack_dumps()
    try:
        return train(options)
    except Exception:
        with contextlib.suppress(OSError):  # the log may be on a full disk
            traceback.print_exc()
            sys.stderr.flush()
        # An ordinary exit would wait in MPI_Finalize for ranks that wait for this one.
        os._exit(ExitCode.FAILED)


if __name__ == "__main__":
    sys.exit(main())
