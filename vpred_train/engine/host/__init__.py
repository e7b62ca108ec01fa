"""The host engine: gradients, optimiser and averages in host memory, collectives by mpi4py."""
