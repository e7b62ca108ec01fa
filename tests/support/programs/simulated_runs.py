"""Simulates runs behind HTTP, as Prometheus would see them: simulated_runs.py PORT RANKS.

The metrics are those of the real WorkerMetrics and of the launcher's real table. The steps are simulated: a run of
RANKS ranks without a fault, and one small run for each fault. npu-exporter and node exporter are played for its hosts.
"""

import json
import math
import random
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from prometheus_client import generate_latest

from launcher.contract.run_dir import Phase, RankStatus, RunDir
from launcher.records.attempt_record import AttemptRecord, LostTime
from launcher.records.event_log import Event
from launcher.records.launcher_metrics import render_launcher_metrics
from launcher.records.plan_record import PlannedRank, PlannedRun
from launcher.records.run_facts import RunFacts
from launcher.records.targets import target_groups
from monitoring.metric_rows import RankLabels
from monitoring.metrics import WorkerMetrics
from support.simulated_hosts import NPUS, node_text, npu_text

STEP_S, COLLECTIVE_S, BATCH = 0.4, 0.05, 256
COMPILED_S, CALM_ENDS_S = 6.0, 150.0  # seconds since the start
EVERY_STEPS = 12  # between two checkpoints, and between two validations
VALIDATION_S = 1.5
# Run -> seconds since the start in which its fault lasts.
FAULTS = {
    "crash": (60, 64),
    "nan": (60, 62),
    "stall": (60, 80),
    "straggler": (60, 120),
    "killed": (60, 100),
    "full-disk": (60, 120),
    "checkpoint": (60, 150),
}
CALM = "calm"
LOG_SNR = ("7.1..3.2", "3.2..1.0", "1.0..-0.6", "-0.6..-2.2")


@dataclass
class Run:
    """A run that trains. `tick` makes its next step when it is time."""

    name: str
    ranks: int
    address: str
    began: float = field(default_factory=time.time)
    metrics: list[WorkerMetrics] = field(default_factory=list)
    records: list[AttemptRecord] = field(default_factory=list)
    step: int = 0
    saved_step: int = 0
    saved_unix_s: float = 0.0
    next_step_s: float = 0.0
    heartbeat: float = 0.0
    phase: Phase = "starting"
    broken: bool = False

    def __post_init__(self) -> None:
        generator = random.Random(self.name)  # noqa: S311  a simulation
        self.own_s = [STEP_S + generator.gauss(0, 0.005) for _ in range(self.ranks)]
        self.start()

    def start(self) -> None:
        """Begin an attempt, whose counters begin with 0."""
        self.metrics = [WorkerMetrics(self.labels(rank)) for rank in range(self.ranks)]
        self.step = self.saved_step
        info = {"run_dir": f"/runs/{self.name}", "accelerator": "ascend", "engine": "host", "compute_dtype": "float16"}
        info |= {"world_size": str(self.ranks), "global_batch": str(BATCH), "version": "0"}
        for each in self.metrics:
            each.observe_run(info, total_steps=2000, total_samples=2000 * BATCH, global_batch=BATCH)
            each.observe_checkpoint_interval(EVERY_STEPS * BATCH)
            each.observe_ceiling(3e14)
            each.observe_compilations(seconds=2.0, cache_hits=0)
            each.observe_left_out(0)
            each.count_pause("compile", 2.0)
            each.observe_device_memory({"allocated": 4 << 30, "reserved": 6 << 30, "peak": 5 << 30})
            if self.saved_step:
                each.observe_newest_checkpoint(self.saved_step, self.saved_unix_s)
        lost = LostTime(start_s=3.0, load_s=1.0, compile_s=2.0, delay_s=4.0 if self.records else 0.0)
        hosts = tuple(sorted({self.host(rank) for rank in range(self.ranks)}))
        self.records.append(
            AttemptRecord(
                attempt=len(self.records) + 1,
                hosts=hosts,
                world_size=self.ranks,
                started_unix_s=time.time(),
                resumed_step=self.step,
                total_steps=2000,
                lost=lost,
            )
        )
        self.broken = False

    def host(self, rank: int) -> str:
        return f"{self.name}-{rank // NPUS}"

    def labels(self, rank: int) -> RankLabels:
        local = str(rank % NPUS)
        return RankLabels(self.name, str(rank), local, self.host(rank), local)

    def fault(self, name: str, now: float) -> bool:
        """Whether this run has the fault now."""
        from_s, to_s = FAULTS[name]
        return self.name == name and from_s <= now - self.began < to_s

    def is_over(self, now: float) -> bool:
        return self.name == CALM and now - self.began > CALM_ENDS_S

    def tick(self, now: float) -> None:
        if self.is_over(now):
            if self.records[-1].exit_code is None:
                self.phase = "done"
                self.note(exit_code=0, ended_unix_s=now)
            return
        if self.fault("crash", now) or self.fault("killed", now):
            if not self.broken and self.name == "crash":
                self.note(exit_code=1, ended_unix_s=now, host=self.host(0))
            self.broken = True
        elif self.broken:
            self.start()
        if not self.fault("killed", now):
            self.heartbeat = now
        if self.broken or self.fault("stall", now):
            return
        if now - self.began < COMPILED_S:
            self.phase = "starting" if now - self.began < COMPILED_S / 2 else "compiling"
        elif now >= self.next_step_s:
            self.phase = "training"
            self.make_step(now)

    def note(self, **changes: Any) -> None:
        """Change the record of the newest attempt."""
        self.records[-1] = self.records[-1].model_copy(update=changes)

    def make_step(self, now: float) -> None:
        own_s = list(self.own_s)
        if self.fault("straggler", now):
            own_s[1] *= 1.38
        step_s = max(own_s) + COLLECTIVE_S
        self.step += 1
        finite = not self.fault("nan", now)
        loss = 0.14 + 0.1 / self.step + random.gauss(0, 0.002)
        numbers = {
            "loss": loss if finite else math.nan,
            "grad_norm": abs(random.gauss(0.3, 0.05)) if finite else math.nan,
            "learning_rate": 1e-5,
            "loss_scale": 1024.0,
            "step": self.step,
            "samples_seen": self.step * BATCH,
            "finite": finite,
            "overflow": False,
        }
        for rank, each in enumerate(self.metrics):
            parts = {"data": 0.01, "encode": 0.05, "forward_backward": own_s[rank] - 0.09, "update": 0.03}
            parts["collective"] = step_s - sum(parts.values())
            each.observe_step(numbers, parts, samples=BATCH / self.ranks, flops=4e13)
        self.note(last_step=self.step, trained_s=self.records[-1].trained_s + step_s, step_s=step_s)
        self.next_step_s = now + step_s
        if self.step % EVERY_STEPS == 0 and not self.fault("checkpoint", now):
            self.save(now)
        if self.step % EVERY_STEPS == EVERY_STEPS // 2:
            self.validate(now)

    def save(self, now: float) -> None:
        self.saved_step, self.saved_unix_s = self.step, now
        numbers = {"step": self.step, "size_bytes": 10 << 30, "total_s": 2.0, "stall_s": 0.2}
        for each in self.metrics:
            each.observe_checkpoint({**numbers, "stage_s": 0.2, "write_s": 1.7, "commit_s": 0.1})
            each.count_pause("checkpoint", 0.2)
        self.note(checkpoint_step=self.step)

    def validate(self, now: float) -> None:
        self.phase, self.next_step_s = "validating", now + VALIDATION_S
        for each in self.metrics:
            each.count_pause("validation", VALIDATION_S)
            for weights in ("raw", "constant"):
                each.observe_validation(self.step, weights, "all", "all", 0.2 + 1 / self.step, 0.004)
                for number, log_snr in enumerate(LOG_SNR):
                    loss = 0.6 / (1 + number) + 1 / self.step
                    each.observe_validation(self.step, weights, str(number), log_snr, loss, 0.01)

    def facts(self, now: float) -> RunFacts:
        """The run as the files of its directory would describe it."""
        alive = not self.broken
        statuses = {
            rank: RankStatus(
                rank=rank,
                hostname=self.host(rank),
                pid=1,
                phase=self.phase,
                step=self.step,
                total_steps=2000,
                samples_seen=self.step * BATCH,
                updated_unix_s=now if alive else self.heartbeat - 60,
            )
            for rank in range(self.ranks)
        }
        over = self.is_over(now)
        return RunFacts(
            run=RunDir(Path("/runs") / self.name),
            name=self.name,
            now_unix_s=now,
            lives=not over and not self.fault("killed", now),
            complete=over,
            event=_end(now) if over else None,
            plan=PlannedRun(ranks=tuple(self.places())),
            last_attempt=len(self.records),
            records=tuple(self.records),
            statuses=statuses,
            ended=frozenset(range(self.ranks)) if over else frozenset(),
            stragglers=(),
            heartbeat_unix_s=self.heartbeat,
            free_bytes=0 if self.fault("full-disk", now) else 3 << 40,
        )

    def places(self) -> Iterator[PlannedRank]:
        for rank in range(self.ranks):
            local = rank % NPUS
            yield PlannedRank(rank=rank, host=self.host(rank), local_rank=local, device_id=local, metrics=self.address)

    def targets(self, now: float) -> list[dict[str, Any]]:
        """The launcher's groups of targets, each with the path at which this program serves the rank."""
        if self.is_over(now):
            return []
        facts = self.facts(now)
        groups = target_groups(self.name, Path("/runs") / self.name, facts.plan.ranks, facts.statuses)
        for group in groups:
            labels = group["labels"]
            labels |= {
                "__metrics_path__": f"/rank/{self.name}/{labels['rank']}",
                "instance": f"{self.name}-{labels['rank']}",
            }
        return groups


def _end(now: float) -> Event:
    return Event.model_validate({"time_unix_s": now, "event": "run_ended", "attempt": 1, "exit_code": 0})


def main(port: int, ranks: int) -> None:
    address = f"127.0.0.1:{port}"
    runs = {name: Run(name, 4, address) for name in (*FAULTS, CALM)}
    runs["night"] = Run("night", ranks, address)
    hosts = sorted({runs["night"].host(rank) for rank in range(ranks)})
    began, lock = time.time(), threading.Lock()

    def simulate() -> None:
        while True:
            with lock:
                for run in runs.values():
                    run.tick(time.time())
            time.sleep(0.02)

    def discovered(kind: str, now: float) -> list[dict[str, Any]]:
        if kind == "ranks":
            return [group for run in runs.values() for group in run.targets(now)]
        labels = [{"__metrics_path__": f"/{kind}/{host}", "hostname": host, "instance": host} for host in hosts]
        return [{"targets": [address], "labels": each} for each in labels]

    def answer(path: list[str], now: float) -> bytes | None:
        """None where nothing would listen."""
        if path[0] == "sd":
            return json.dumps(discovered(path[1], now)).encode()
        if path[0] == "npu":
            return npu_text(now - began).encode()
        if path[0] == "node":
            return node_text(now - began).encode()
        with lock:
            if path[0] == "launcher":
                return render_launcher_metrics([run.facts(now) for run in runs.values()])
            run = runs[path[1]]
            return None if run.broken or run.is_over(now) else generate_latest(run.metrics[int(path[2])].registry)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 20

        def do_GET(self) -> None:
            body = answer(self.path.partition("?")[0].strip("/").split("/"), time.time())
            if body is None:
                self.close_connection = True
                return
            self.send_response(200)
            self.send_header("Content-Type", "application/json" if self.path.startswith("/sd") else "text/plain")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256

    threading.Thread(target=simulate, daemon=True).start()
    Server(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
