"""Checks that a device can train a recipe. Needs no MindSpore."""

from launcher.contract.accelerators import Accelerator
from launcher.contract.config import ConfigError
from vpred_train.config.optimizer import DEVICE_OPTIMIZERS
from vpred_train.config.train import TrainConfig


def check_device(config: TrainConfig, accelerator: Accelerator, profiled_steps: int = 0) -> None:
    """Raise ConfigError when this accelerator or its engine cannot train the recipe.

    profiled_steps: number of steps to record with MindSpore's profiler
    """
    config.precision.on(accelerator)
    if accelerator.engine == "device" and config.optimizer.name not in DEVICE_OPTIMIZERS:
        raise ConfigError(
            f"optimizer.name: found {config.optimizer.name!r}, which engine device does not have",
            f"take {', '.join(DEVICE_OPTIMIZERS)}, or engine=host in the cluster file",
        )
    if profiled_steps and accelerator.device_target == "CPU":
        raise ConfigError(
            f"--profile: found {profiled_steps} on accelerator {accelerator.name}, which MindSpore's profiler does not "
            "record",
            "leave it out (metrics.jsonl has the parts of each step)",
        )
