"""Wraps a rank's trainer (run_trainer), one per rank. It ties itself to its starter before anything that takes time.

`launcher.rank.shim --run-dir D --attempt N --lease-s S --by LAUNCHER --init WAY ... -- TRAINER ...`
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from launcher.contract.exit_codes import NOT_STARTED
from launcher.contract.process import die_with_parent, living_parent

# Launcher that starts each rank in a separate session -> a word in its command line. Open MPI, Slurm and
# launcher.rank.node do not.
_OWN_SESSIONS = {"msrun": "msrun", "mpich": "hydra_pmi_proxy"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the trainer to its end. Returns its exit code, or 128 + signal."""
    options = _parser().parse_args(argv)
    starter_pid = living_parent(_OWN_SESSIONS.get(options.by))
    if starter_pid is None:
        print("launcher.rank.shim: what started it is gone; not starting a trainer nobody watches", file=sys.stderr)
        return NOT_STARTED
    die_with_parent(starter_pid)
    from launcher.rank.run_trainer import run_trainer  # pydantic loads slowly, and the starter may die meanwhile

    return run_trainer(options, starter_pid)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="launcher.rank.shim", allow_abbrev=False)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--lease-s", type=float, required=True)
    parser.add_argument("--by", choices=("vpred", "msrun", "slurm", "openmpi", "mpich"), required=True)
    parser.add_argument("--init", choices=("mpi", "rank_table", "dynamic_cluster"), default="mpi")
    parser.add_argument("--rank-table", type=Path)
    parser.add_argument("--device-ids", type=_numbers, default=())
    parser.add_argument("--scheduler-host", default="")
    parser.add_argument("--scheduler-port", type=int, default=0)
    parser.add_argument("--join-timeout-s", type=float, default=0.0)
    parser.add_argument("trainer", nargs="+")
    return parser


if __name__ == "__main__":
    sys.exit(main())
