"""`python -m checkpoints_mgr`: the same as `vpred-ckpt`."""

from vpred_train.entry import checkpoints

if __name__ == "__main__":
    checkpoints()
