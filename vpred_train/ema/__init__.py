"""Moving averages of the weights: their profiles, snapshots of them, and other profiles made of snapshots."""
