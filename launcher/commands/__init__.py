"""Commands that only look: status, logs, ranktable."""
