"""Optimisers, learning rate and loss scale."""
