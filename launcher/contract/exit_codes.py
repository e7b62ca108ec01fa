"""Defines the exit codes that the trainer, the shim and the launcher share."""

from enum import IntEnum


class ExitCode(IntEnum):
    """Lists the exit codes. PREEMPTED is EX_TEMPFAIL of sysexits.h: the same command resumes the run."""

    OK = 0
    FAILED = 1
    BAD_CONFIG = 2
    PREEMPTED = 75
    DIVERGED = 76


# The code of a program that could not be started, as shells use it.
NOT_STARTED = 127
