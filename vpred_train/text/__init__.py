"""Captions to tokens. No MindSpore."""
