"""Holds what every check needs to know about this rank, and starts the rank as a run would."""

import argparse
import logging
import os
import time
from dataclasses import dataclass

from launcher.contract.accelerators import Accelerator
from launcher.contract.doctor_record import DoctorRecord
from launcher.contract.identity import Identity
from launcher.contract.process import die_with_parent
from launcher.contract.run_dir import RunDir
from monitoring import configure_logging
from vpred_train import runtime
from vpred_train.config.train import TrainConfig
from vpred_train.distributed.collectives import Collective, make_collective
from vpred_train.doctor.recorder import Recorder


@dataclass(frozen=True)
class Station:
    """Holds one rank that is to be examined.

    config: the recipe, with its precision resolved
    device_id: number of the device among those that this process sees
    backend: name of the collective's implementation
    start_s: how long the start took, with MindSpore and the collective
    before: this rank's results of the start before, None in the first
    """

    config: TrainConfig
    accelerator: Accelerator
    identity: Identity
    device_id: int
    collective: Collective
    backend: str
    run: RunDir
    recorder: Recorder
    start_s: float
    before: DoctorRecord | None

    @property
    def on_cpu(self) -> bool:
        return self.accelerator.device_target == "CPU"

    @property
    def one_host(self) -> bool:
        return self.identity.local_size == self.identity.world_size


def begin(config: TrainConfig, arguments: argparse.Namespace, accelerator: Accelerator) -> Station:
    """Start this rank: MindSpore, the device, and the collective. Import MindSpore only afterwards.

    arguments: those of a rank of a run, and `before`, the number of the start before
    Raises ConfigError: when the environment's variables or the precision are bad.
    """
    started_s = time.monotonic()
    identity = runtime.identify()
    if identity.launcher != "none":
        die_with_parent(os.getppid())
    configure_logging(identity.rank, logging.INFO)
    run = RunDir(arguments.run_dir)
    attempt = run.attempt(arguments.attempt)
    attempt.root.mkdir(parents=True, exist_ok=True)
    recorder = Recorder(identity, attempt)
    recorder.begin("start")
    config = config.model_copy(update={"precision": config.precision.on(accelerator)})
    device_id = runtime.own_device(identity, arguments.device_ids)
    runtime.start(accelerator, identity, device_id, arguments.rank_table)
    backend = accelerator.collective_under(identity.launcher)
    collective = make_collective(backend, identity.world_size, arguments.collective_timeout_s)
    recorder.timer = collective.timer
    before = None
    if arguments.before is not None:
        before = DoctorRecord.read(run.attempt(arguments.before).doctor(identity.rank))
    start_s = time.monotonic() - started_s
    return Station(config, accelerator, identity, device_id, collective, backend, run, recorder, start_s, before)
