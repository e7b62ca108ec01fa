"""Saving a step by all ranks together, and what stays."""
