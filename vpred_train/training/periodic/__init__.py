"""What happens between two steps now and then: snapshots, validation, previews, checkpoints."""
