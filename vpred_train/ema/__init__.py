"""Provides moving averages of the weights: their profiles, snapshots, and other profiles made of snapshots."""
