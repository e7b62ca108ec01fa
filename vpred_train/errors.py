"""Which exceptions are the user's mistakes: one line on stderr and exit code 2, never a traceback."""

from checkpoints_mgr import CheckpointError
from data import DataError
from launcher.contract.config import ConfigError
from monitoring import MonitorError

USER_ERRORS = (ConfigError, DataError, CheckpointError, MonitorError)
