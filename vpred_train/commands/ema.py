"""vpred-ema: the moving average of any width sigma_rel, made after the training of the snapshots that it kept."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher.contract.command_line import command_line
from launcher.contract.config import ConfigError, load_document
from launcher.contract.exit_codes import ExitCode
from launcher.contract.run_dir import RunDir
from vpred_train.config.optimizer import SIGMA_REL_MAX, power_name
from vpred_train.config.train import TrainConfig
from vpred_train.ema.reconstruction import Profile, combine, solve
from vpred_train.ema.snapshots import Snapshot, find_snapshots
from vpred_train.errors import USER_ERRORS
from vpred_train.foreign import finite_number
from vpred_train.weights.whole_model import write_whole


@command_line(*USER_ERRORS, prefix="vpred-ema: ")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit code: 0 done, 2 cannot be done."""
    arguments = _parser().parse_args(argv)
    run, wanted = RunDir(arguments.run_dir), (arguments.sigma_rel, arguments.at_samples)
    report = reconstruct(run, *wanted, arguments.output, arguments.base)
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        print(
            f"{report['output']}: sigma_rel {report['sigma_rel']:g} at {report['samples_seen']} samples, of "
            f"{len(report['snapshots'])} snapshots; relative error of the profile {report['residual']:.2g}"
        )
    return ExitCode.OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vpred-ema", description=__doc__)
    parser.add_argument("run_dir", type=Path, help="run directory of a training with ema.snapshot_every_samples")
    parser.add_argument(
        "--sigma-rel",
        type=finite_number,
        required=True,
        help="width of the average, as a fraction of the training time, such as 0.07",
    )
    parser.add_argument(
        "--at-samples", type=int, help="time of the average in samples seen (default: that of the last snapshot)"
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="new safetensors file, in the form that the run exports"
    )
    parser.add_argument("--base", type=Path, help="path of the weights that the run began with, if they have moved")
    parser.add_argument(
        "--json", action="store_true", help="print the coefficients and the error of the profile as one JSON object"
    )
    return parser


def reconstruct(
    run: RunDir, sigma_rel: float, at_samples: int | None, output: Path, base: Path | None = None
) -> dict[str, Any]:
    """Write the average as `output`, and return a report of it as JSON. Raises ConfigError: when it cannot be made."""
    if not 0 < sigma_rel <= SIGMA_REL_MAX:
        raise ConfigError(f"--sigma-rel: found {sigma_rel:g}; give a width above 0 and up to {SIGMA_REL_MAX}")
    if output.exists():
        raise ConfigError(f"{output}: exists already; give a new path")
    config = load_document(TrainConfig, run.train_yaml)
    snapshots = usable_snapshots(run, at_samples)
    tracked = [Profile(each.sigma_rel, each.samples_seen) for each in snapshots]
    wanted = Profile(sigma_rel, snapshots[-1].samples_seen)
    coefficients, residual = solve(tracked, wanted)
    for snapshot in snapshots:
        snapshot.verify()
    record = snapshots[-1].record.model_copy(update={"average": power_name(sigma_rel)})
    write_whole(output, "stability", config, combine(snapshots, coefficients), record, base)
    return {
        "output": str(output),
        "sigma_rel": sigma_rel,
        "samples_seen": wanted.samples_seen,
        "residual": residual,
        "snapshots": [
            {**profile._asdict(), "path": str(snapshot.path), "coefficient": float(coefficient)}
            for snapshot, profile, coefficient in zip(snapshots, tracked, coefficients, strict=True)
        ],
    }


def usable_snapshots(run: RunDir, at_samples: int | None) -> list[Snapshot]:
    """Return the run's snapshots up to `at_samples`; the last are of that time. Raises ConfigError: for too few."""
    snapshots = find_snapshots(run.snapshots)
    times = sorted({each.samples_seen for each in snapshots})
    if at_samples is not None and at_samples not in times:
        raise ConfigError(f"--at-samples: found {at_samples}; there are snapshots at {', '.join(map(str, times))}")
    snapshots = [each for each in snapshots if at_samples is None or each.samples_seen <= at_samples]
    widths = {each.sigma_rel for each in snapshots}
    if len(widths) == 1:
        raise ConfigError(
            f"{run.snapshots}: holds snapshots of sigma_rel {widths.pop():g} alone; "
            "train with two widths in ema.sigma_rel"
        )
    return snapshots


if __name__ == "__main__":
    sys.exit(main())
