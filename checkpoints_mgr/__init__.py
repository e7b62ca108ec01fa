"""Saves and restores sharded checkpoints: safetensors files, digests, and one atomic commit for all ranks.

A checkpoint is either complete or absent.
"""

from checkpoints_mgr.alike import check_alike
from checkpoints_mgr.communicator import Communicator, SingleProcess
from checkpoints_mgr.disk.reading import Checkpoint
from checkpoints_mgr.errors import CheckpointError, CheckpointFaultError, DriftError
from checkpoints_mgr.manager import CheckpointManager
from checkpoints_mgr.policy import Retention, SaveEvery
from checkpoints_mgr.state import JSON, FlatShard, Restored, SaveResult, Segment, State

__all__ = [
    "JSON",
    "Checkpoint",
    "CheckpointError",
    "CheckpointFaultError",
    "CheckpointManager",
    "Communicator",
    "DriftError",
    "FlatShard",
    "Restored",
    "Retention",
    "SaveEvery",
    "SaveResult",
    "Segment",
    "SingleProcess",
    "State",
    "check_alike",
]
