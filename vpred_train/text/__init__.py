"""Converts captions to tokens. Uses no MindSpore."""
