"""What can go wrong with a checkpoint, in words meant for the person who runs the job."""


class CheckpointError(Exception):
    """A checkpoint cannot be saved or restored; the message is one readable line, equal on all ranks."""


class CheckpointFaultError(CheckpointError):
    """Not the user's doing: a bug, whose traceback is in the log of its rank, or a machine that fails."""


class DriftError(CheckpointFaultError):
    """Ranks hold different values of what must be equal: no later save can be right, and none was made."""


class CorruptCheckpointError(CheckpointError):
    """The bytes on disk provably differ from what was committed (never raised for a transient I/O error).

    file: the name of the data file that is at fault, empty when it is the manifest or the step as a whole.
    """

    def __init__(self, message: str, file: str = "") -> None:
        super().__init__(message)
        self.file = file
