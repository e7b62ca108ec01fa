"""vpred-launch with the fake trainer, as a program of its own: it can be signalled and killed."""

import sys
from pathlib import Path

from launcher.cli import main
from launcher.planning.trainer import Trainer
from vpred_train.entry import prepare

FAKE_TRAINER = Path(__file__).with_name("fake_trainer.py")

if __name__ == "__main__":
    prepare()
    trainer = (sys.executable, "-P", str(FAKE_TRAINER))
    launch = (sys.executable, "-P", str(Path(__file__).resolve()))
    sys.exit(main(sys.argv[1:], Trainer(trainer, ("mpi4py",), {}, launch)))
