"""Lists all checks, in the order in which each builds on the ones before."""

from vpred_train.doctor import exchanges, fused, machine, memory, one_step, operations, shapes, speeds
from vpred_train.doctor.check import Check

CHECKS: dict[str, Check] = {
    "versions": Check(machine.software),
    "start": Check(machine.start),
    "number formats": Check(machine.formats),
    "operations": Check(operations.items, shared=True),
    "extreme shapes": Check(shapes.items, shared=True),
    "fused operations": Check(fused.items, shared=True),
    "speed": Check(speeds.items, at_once=True),
    "collectives": Check(exchanges.items, collective=True),
    "training step": Check(one_step.items, collective=True),
    "memory": Check(memory.items),
}

# Checks after a second start of all ranks.
AFTER_RESTART: dict[str, Check] = {
    "restart": Check(one_step.restart_items, collective=True),
}
