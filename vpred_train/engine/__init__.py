"""Runs one training step on the state that it changes, on the host with mpi4py."""
