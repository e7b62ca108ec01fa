"""Saves a step by all ranks together, and removes expired steps."""
