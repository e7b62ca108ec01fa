"""MindONE's command line for images, answered by `vpred-sample`: python -m vpred_train.text_to_image --prompt ..."""

from vpred_train.entry import text_to_image

if __name__ == "__main__":
    text_to_image()
