"""MindSpore's process-wide settings: the only caller of set_context and set_device."""

from pathlib import Path

from launcher.contract.accelerators import Accelerator
from launcher.contract.environment import export
from launcher.contract.identity import Identity


def start(accelerator: Accelerator, identity: Identity, device_id: int, rank_table: Path | None) -> None:
    """Export the accelerator's variables, then import and set up MindSpore. Call before any MindSpore import.

    The order is forced: MindSpore reads the environment while it is imported.
    """
    export(accelerator.environment(identity, device_id, rank_table))
    import mindspore

    mindspore.set_context(mode=mindspore.GRAPH_MODE)
    mindspore.set_device(accelerator.device_target, device_id)
    if accelerator.device_target == "CPU":
        # One actor thread: ranks, not threads, fill the cores.
        mindspore.set_context(runtime_num_threads=1)
