"""The user's mistakes in this room."""


class MonitorError(Exception):
    """A port or a file that cannot be used; the message is ready to print and gives a remedy. Exit code 2."""
