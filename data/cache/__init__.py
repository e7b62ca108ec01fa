"""Stores arrays on disk under the digest of all that determines them."""
