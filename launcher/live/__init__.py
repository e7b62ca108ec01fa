"""Serves the metrics, the targets and the live pages of the runs in a folder."""
