"""Holds what the launcher and the trainer must agree on. The trainer imports no other part of `launcher`."""
