"""The training loop, its checkpoints, observers and hooks, and the end of a run."""
