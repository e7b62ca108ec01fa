"""`python -m vpred_train`: the same as `vpred-train`."""

from vpred_train.entry import train

if __name__ == "__main__":
    train()
