"""Makes batches of this rank's share ahead of training."""
