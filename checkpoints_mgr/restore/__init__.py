"""Restores the newest sound step by all ranks together."""
