"""Defines the errors of checkpoints. Their messages address the person who runs the job."""


class CheckpointError(Exception):
    """Says that a checkpoint cannot be saved or restored. The message is one readable line, equal on all ranks."""


class CheckpointFaultError(CheckpointError):
    """Says that the user is not the cause: it is a bug, whose traceback is in its rank's log, or a failing machine."""


class DriftError(CheckpointFaultError):
    """Says that ranks hold different values where they must be equal. No later save can be right, and none was made."""


class CorruptCheckpointError(CheckpointError):
    """Says that the bytes on disk provably differ from what was committed. A transient I/O error never raises it.

    file: name of the data file at fault; empty when the fault is the manifest's or the whole step's.
    """

    def __init__(self, message: str, file: str = "") -> None:
        super().__init__(message)
        self.file = file
