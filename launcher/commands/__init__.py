"""Implements the commands that start no ranks: status, logs, ranktable."""
