"""Lists the schedulers, by the values of `submit.scheduler`."""

from launcher.submit.kubernetes import Kubernetes
from launcher.submit.scheduler import Scheduler

SCHEDULERS: dict[str, Scheduler] = {"kubernetes": Kubernetes()}
