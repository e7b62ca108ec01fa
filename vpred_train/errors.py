"""Defines which exceptions are the user's mistakes: one line on stderr and exit code 2, never a traceback."""

from checkpoints_mgr import CheckpointError, CheckpointFaultError
from data import DataError
from launcher.contract.config import ConfigError
from monitoring import MonitorError

USER_ERRORS = (ConfigError, DataError, CheckpointError, MonitorError)


def is_users(error: BaseException) -> bool:
    """Return whether the user can fix the error. A failed save or restore may also be a bug or a failing machine."""
    return isinstance(error, USER_ERRORS) and not isinstance(error, CheckpointFaultError)
