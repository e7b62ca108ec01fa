"""The user's mistakes in this room."""


class DataError(Exception):
    """A fault in the data; the message is ready to print and names file, row and remedy. Exit code 2."""
