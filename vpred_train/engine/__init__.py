"""One training step and the state that it changes, on the host with mpi4py."""
