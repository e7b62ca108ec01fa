"""vpred-launch whose doctor is planted_doctor.py."""

import sys
from dataclasses import replace
from pathlib import Path

from launcher.cli import main
from launcher.planning.trainer import TRAINER
from vpred_train.entry import prepare

PLANTED = (sys.executable, "-P", str(Path(__file__).with_name("planted_doctor.py")))

if __name__ == "__main__":
    prepare()
    sys.exit(main(sys.argv[1:], replace(TRAINER, doctor=PLANTED)))
