"""Runs `vpred-ckpt` as `python -m checkpoints_mgr`."""

from vpred_train.entry import checkpoints

if __name__ == "__main__":
    checkpoints()
