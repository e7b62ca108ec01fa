"""Exit codes shared by the trainer, the shim and the launcher."""

from enum import IntEnum


class ExitCode(IntEnum):
    """PREEMPTED is EX_TEMPFAIL of sysexits.h: the same command resumes the run."""

    OK = 0
    FAILED = 1
    BAD_CONFIG = 2
    PREEMPTED = 75
    DIVERGED = 76


# As a shell's: of a program that could not be started.
NOT_STARTED = 127
