"""Implements the command lines of vpred-train, -sample, -weights, -ema, -ckpt and -data."""
