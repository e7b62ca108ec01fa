"""Looks for what would make a launch fail, on this host and on all others."""
