"""Run directories as launchers and ranks leave them, without a run: for what reads them."""

import fcntl
import json
import os
import socket
import time
from pathlib import Path

import numpy as np
from PIL import Image

from launcher.contract.run_dir import RankStatus, RunDir
from launcher.records.attempt_record import AttemptRecord, LostTime
from launcher.records.event_log import EventLog
from launcher.records.straggler_record import Straggler, Stragglers

TOTAL_STEPS = 1000


def make_run(
    root: Path,
    *,
    hosts: int = 2,
    ranks_per_host: int = 4,
    step: int = 420,
    accelerator: str = "ascend",
    phase: str = "training",
    host_name: str = "n{:03}",
    earlier: tuple[AttemptRecord, ...] = (),
    exit_code: int | None = None,
    slow: int | None = None,
    age_s: float = 0.0,
) -> RunDir:
    """A run whose newest attempt is at `step`. It looks running while `hold` holds its lock.

    earlier: records of the attempts before
    age_s: of the ranks' statuses
    """
    run, now = RunDir(root), time.time()
    number = len(earlier) + 1
    attempt = run.attempt(number)
    attempt.root.mkdir(parents=True)
    names = [host_name.format(index) for index in range(hosts)]
    places = [
        {"rank": index * ranks_per_host + local, "host": host, "local_rank": local, "device_id": local,
         "metrics": f"{host}:{9400 + local}"}
        for index, host in enumerate(names)
        for local in range(ranks_per_host)
    ]  # fmt: skip
    plan = {"accelerator": accelerator, "engine": "device", "ranks": places, "run_dir": str(root), "attempt": number}
    plan["supervision"] = {"timeouts": {"step_s": 900.0}}
    run.plan_json.write_text(json.dumps(plan))
    events = EventLog(run.events_jsonl)
    for record in earlier:
        run.attempt(record.attempt).root.mkdir()
        record.write(run.attempt(record.attempt).record)
    AttemptRecord(
        attempt=number,
        hosts=tuple(names),
        world_size=len(places),
        started_unix_s=now - 3600,
        ended_unix_s=None if exit_code is None else now - 5,
        exit_code=exit_code,
        text="" if exit_code in (None, 0) else f"rank 3 on host {names[-1]} ended with exit code {exit_code}",
        host=names[-1] if exit_code else None,
        resumed_step=earlier[-1].checkpoint_step if earlier else 0,
        last_step=step,
        checkpoint_step=step // 100 * 100,
        step_s=2.1,
        total_steps=TOTAL_STEPS,
        trained_s=2900.0,
        lost=LostTime(detection_s=31 * len(earlier), delay_s=65 * len(earlier), start_s=40, load_s=22, compile_s=95),
    ).write(attempt.record)
    events.write("attempt_begun", number)
    for place in places:
        write_status(run, number, place["rank"], place["host"], step, phase, now - age_s)
    attempt.lease.touch()
    attempt.log(0).write_text(
        "".join(f"2026-01-01T00:00:{n:02}Z rank 0 step {step + n} loss 0.2{n}\n" for n in range(30))
    )
    if slow is not None:
        Stragglers(ranks=(Straggler(rank=slow, own_step_seconds=2.9, others_step_seconds=1.6),)).write(
            attempt.stragglers_json
        )
    if exit_code is not None:
        events.write("attempt_ended", number, exit_code=exit_code)
        events.write("run_ended", number, exit_code=exit_code)
    run.lock.touch()
    return run


def write_status(run: RunDir, attempt: int, rank: int, host: str, step: int, phase: str, updated_unix_s: float) -> None:
    RankStatus(
        rank=rank,
        hostname=f"{host}.cluster",
        pid=1000 + rank,
        phase=phase,
        step=step,
        total_steps=TOTAL_STEPS,
        samples_seen=256 * step,
        loss=0.2143,
        images_per_second=15.2,
        waiting=rank % 3 == 1,
        timed_steps=step,
        own_seconds=1.6 * step,
        resumed_step=0,
        phase_unix_s={"starting": updated_unix_s - 3500, "training": updated_unix_s - 2.1 * (step - 1)},
        updated_unix_s=updated_unix_s,
    ).write(run.attempt(attempt).status(rank))


def hold(run: RunDir) -> int:
    """Lock the run as its launcher does. The descriptor that is returned ends this when it is closed."""
    descriptor = os.open(run.lock, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.truncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode())
    return descriptor


def write_grid(run: RunDir, name: str = "step-400.png") -> None:
    """A sheet of pictures in RUN/grids."""
    run.grids.mkdir(exist_ok=True)
    y, x = np.mgrid[0:192, 0:768] / 96
    pixels = np.stack([np.sin(3 * x + k) * np.cos(2 * y - k) for k in range(3)], -1)
    Image.fromarray((127 + 127 * pixels).astype(np.uint8)).save(run.grids / name)


def write_histories(run: RunDir, steps: int = 420) -> None:
    """metrics.jsonl and validation.jsonl as the trainer writes them."""
    generator = np.random.default_rng(1)
    rows = []
    for step in range(1, steps + 1):
        loss = 0.2 + 0.5 / step**0.5 + 0.02 * generator.standard_normal()
        seconds = 2.0 + 0.1 * generator.standard_normal()
        shares = {"data": 0.03, "encode": 0.11, "forward_backward": 0.6, "collective": 0.19, "update": 0.05}
        parts = {
            ("data_wait" if part == "data" else part) + "_seconds": share * seconds for part, share in shares.items()
        }
        row = {
            "step": step,
            "samples_seen": 256 * step,
            "loss": loss,
            "grad_norm": 0.3 + 1 / step,
            "learning_rate": 1e-4,
        }
        rows.append(row | {"step_seconds": seconds} | parts)
    run.metrics_jsonl.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    rows = []
    for step in range(50, steps + 1, 50):
        for weights, factor in (("raw", 1.05), ("constant", 1.0)):
            for first, last in ((0, 999), *((1000 * n // 6, 1000 * (n + 1) // 6 - 1) for n in range(6))):
                loss = factor * (0.22 + 0.4 / step**0.5) * (1 if last - first > 500 else 0.5 + first / 1000)
                row = {"step": step, "samples_seen": 256 * step, "weights": weights, "loss": loss}
                row |= {"standard_error": 0.04 * loss, "first_timestep": first, "last_timestep": last}
                rows.append(row | {"log_snr_high": 6 - first / 80, "log_snr_low": 6 - (last + 1) / 80})
    run.validation_jsonl.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
