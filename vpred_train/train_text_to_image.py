"""MindONE's command line for training, answered by `vpred-train`: python -m vpred_train.train_text_to_image ..."""

from vpred_train.entry import train

if __name__ == "__main__":
    train()
