"""Writes this rank's status file, which is its heartbeat."""

import threading
import time
from contextlib import suppress

from checkpoints_mgr import SaveResult
from launcher.contract.identity import Identity
from launcher.contract.run_dir import BEAT_S, AttemptDir, Phase, RankStatus
from vpred_train.config.train import TrainConfig
from vpred_train.distributed.watchdog import CollectiveTimer
from vpred_train.engine.step_result import StepResult
from vpred_train.training.hooks.hook import Hook

STATUS_INTERVAL_S = 1.0


class StatusHook(Hook):
    """Writes this rank's status file at each new phase, and at most once a second at steps.

    A separate thread writes it at least every BEAT_S, so that the launcher can distinguish a rank that waits from one
    that is stuck.
    """

    def __init__(
        self, identity: Identity, pid: int, config: TrainConfig, attempt: AttemptDir, timer: CollectiveTimer
    ) -> None:
        self.identity, self.pid, self.config = identity, pid, config
        self.path = attempt.status(identity.rank)
        self.timer = timer
        self.phase: Phase = "starting"
        self.phase_unix_s: dict[Phase, float] = {}
        self.resumed_step: int | None = None
        self.step, self.samples_seen = 0, 0
        self.loss: float | None = None
        self.images_per_second: float | None = None
        self.checkpoint_step: int | None = None
        self.metrics_port: int | None = None
        self.steps, self.own_seconds = 0, 0.0
        self.written_s = 0.0
        self.writing, self.closed = threading.Lock(), threading.Event()
        threading.Thread(target=self._beat, daemon=True, name="status").start()

    def on_phase(self, phase: Phase, step: int, samples_seen: int) -> None:
        if phase != "starting" and self.resumed_step is None:
            self.resumed_step = self.checkpoint_step = step
        self._enter(phase)
        self.step, self.samples_seen = step, samples_seen
        self.loss = self.images_per_second = None
        self._write()

    def on_step(self, result: StepResult) -> None:
        self.step, self.samples_seen, self.loss = result.step, result.samples_seen, result.loss
        self.images_per_second = self.config.global_batch / self.identity.world_size / result.step_seconds
        self.steps += 1
        if self.steps > 1:
            self.own_seconds += result.own_seconds
        changed = self.phase != "training"
        self._enter("training")
        if changed or time.monotonic() - self.written_s >= STATUS_INTERVAL_S:
            self._write()

    def on_checkpoint(self, saved: SaveResult) -> None:
        self.checkpoint_step = saved.step

    def close(self) -> None:
        self.closed.set()

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        # A new dict: the other thread may be writing the old one.
        self.phase_unix_s = {phase: time.time()} | self.phase_unix_s

    def _beat(self) -> None:
        while not self.closed.wait(BEAT_S / 2):
            if time.monotonic() - self.written_s >= BEAT_S / 2:
                # A full disk is reported by the training thread, whose writes raise the error.
                with suppress(OSError):
                    self._write()

    def _write(self) -> None:
        with self.writing:
            RankStatus(
                rank=self.identity.rank,
                hostname=self.identity.hostname,
                pid=self.pid,
                phase=self.phase,
                step=self.step,
                total_steps=self.config.total_steps,
                samples_seen=self.samples_seen,
                loss=self.loss,
                images_per_second=self.images_per_second,
                waiting=self.timer.inside,
                timed_steps=max(0, self.steps - 1),
                own_seconds=self.own_seconds,
                checkpoint_step=self.checkpoint_step,
                resumed_step=self.resumed_step,
                phase_unix_s=self.phase_unix_s,
                updated_unix_s=time.time(),
                metrics_port=self.metrics_port,
            ).write(self.path)
            self.written_s = time.monotonic()
