"""`python -m vpred_train`: the same as `vpred-train`."""

from vpred_train.cli import main

if __name__ == "__main__":
    main()
