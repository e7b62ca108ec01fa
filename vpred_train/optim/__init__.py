"""Provides optimisers, learning rate and loss scale."""
