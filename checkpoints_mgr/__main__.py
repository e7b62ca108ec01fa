"""python -m checkpoints_mgr: the same as vpred-ckpt."""

from checkpoints_mgr.cli import main

if __name__ == "__main__":
    main()
