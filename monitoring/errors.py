"""Defines the error for users' mistakes in this package."""


class MonitorError(Exception):
    """Reports a port or a file that cannot be used; the message is ready to print and gives a remedy. Exit code 2."""
