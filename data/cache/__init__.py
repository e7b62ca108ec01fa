"""Arrays on disk under the digest of all that decides them."""
