"""Acts between two steps on all ranks together: snapshots, validation, previews, checkpoints."""
