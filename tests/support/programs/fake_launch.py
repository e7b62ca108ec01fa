"""vpred-launch with the fake trainer, as a program of its own: it can be signalled and killed."""

import sys
from pathlib import Path

from launcher.cli import main
from launcher.planning.trainer import Trainer
from vpred_train.entry import prepare

FAKE_TRAINER = Path(__file__).with_name("fake_trainer.py")

if __name__ == "__main__":
    prepare()
    sys.exit(main(sys.argv[1:], Trainer((sys.executable, "-P", str(FAKE_TRAINER)), ("mpi4py",), {})))
