"""Sharded checkpoints that are either whole or not there: safetensors, digests, one atomic commit for all ranks."""

from checkpoints_mgr.communicator import Communicator, SingleProcess
from checkpoints_mgr.errors import CheckpointError
from checkpoints_mgr.manager import CheckpointManager
from checkpoints_mgr.state import JSON, Restored, SaveResult, State

__all__ = [
    "JSON",
    "CheckpointError",
    "CheckpointManager",
    "Communicator",
    "Restored",
    "SaveResult",
    "SingleProcess",
    "State",
]
