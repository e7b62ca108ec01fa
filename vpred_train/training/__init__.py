"""One rank of a run: its parts, the training loop, and the end of the run."""
