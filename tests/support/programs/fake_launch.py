"""vpred-launch with the fake trainer and the fake doctor, as a program of its own: it can be signalled and killed."""

import sys
from pathlib import Path

from launcher.cli import main
from launcher.planning.trainer import Trainer
from vpred_train.entry import prepare

TRAINER, DOCTOR = (
    (sys.executable, "-P", str(Path(__file__).with_name(f"fake_{name}.py"))) for name in ("trainer", "doctor")
)

if __name__ == "__main__":
    prepare()
    launch = (sys.executable, "-P", str(Path(__file__).resolve()))
    sys.exit(main(sys.argv[1:], Trainer(TRAINER, DOCTOR, ("mpi4py",), {}, launch)))
