"""Reads and writes the files of a checkpoint: names, bytes, digests, manifest."""
