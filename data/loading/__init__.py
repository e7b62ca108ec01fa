"""Batches of this rank's share, made ahead."""
