"""Lists the schedulers, by the values of `submit.scheduler`."""

from launcher.submit.kubernetes import Kubernetes
from launcher.submit.scheduler import Scheduler
from launcher.submit.slurm import Slurm

SCHEDULERS: dict[str, Scheduler] = {"kubernetes": Kubernetes(), "slurm": Slurm()}
