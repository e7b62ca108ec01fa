"""What the launcher and the trainer must agree on: the only part of `launcher` that the trainer imports."""
