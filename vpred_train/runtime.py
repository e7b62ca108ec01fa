"""MindSpore's process-wide settings: the only caller of set_context and set_device."""

import logging
import os
from pathlib import Path

from launcher.contract.accelerators import Accelerator
from launcher.contract.environment import export
from launcher.contract.identity import Identity
from vpred_train.kernels import library

logger = logging.getLogger(__name__)


def start(accelerator: Accelerator, identity: Identity, device_id: int, rank_table: Path | None) -> None:
    """Export the accelerator's variables, then import and set up MindSpore. Call before any MindSpore import.

    The order is forced: MindSpore reads the environment while it is imported.
    """
    export(accelerator.environment(identity, device_id, rank_table))
    if not (accelerator.compiled_operations and library.load(_threads(identity))):
        export(accelerator.plain_variables)
        if accelerator.compiled_operations:
            logger.warning("no compiled operations for this processor; make them: %s", library.BUILD_COMMAND)
    import mindspore

    mindspore.set_context(mode=mindspore.GRAPH_MODE)
    mindspore.set_device(accelerator.device_target, device_id)
    if accelerator.device_target == "CPU":
        # One actor thread: ranks, not threads, fill the cores.
        mindspore.set_context(runtime_num_threads=1)


def _threads(identity: Identity) -> int:
    """This rank's share of the cores that this process may use."""
    return max(1, len(os.sched_getaffinity(0)) // identity.local_size)
