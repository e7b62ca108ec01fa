"""`vpred-sample`: images from the exported weights of a run."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from launcher.contract.accelerators import ACCELERATORS
from launcher.contract.config import ConfigError, load_document
from launcher.contract.environment import environment
from launcher.contract.exit_codes import ExitCode
from launcher.contract.files import write_atomic
from launcher.contract.identity import read_identity
from launcher.contract.run_dir import RunDir
from vpred_train import runtime
from vpred_train.config import TrainConfig
from vpred_train.models.weights import read_record, read_tensors


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="vpred-sample", description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="run directory of a finished training")
    parser.add_argument("--prompt", action="append", required=True, help="what to draw; may be given several times")
    parser.add_argument("--weights", choices=("ema", "raw"), default="ema")
    parser.add_argument("--sampler", help="dpmpp_2m, ddim, unipc ... (default: the recipe's)")
    parser.add_argument("--steps", type=int, help="sampling steps (default: the recipe's)")
    parser.add_argument("--guidance-scale", type=float, help="1 is no guidance (default: the recipe's)")
    parser.add_argument(
        "--seed", type=int, help="seed of the first image, the next gets seed + 1 (default: the recipe's)"
    )
    parser.add_argument("--output", type=Path, help="folder for the images (default: RUN/samples)")
    parser.add_argument("--accelerator", choices=sorted(ACCELERATORS), default="cpu")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; never returns."""
    arguments = build_parser().parse_args(argv)
    try:
        for path in sample(arguments):
            print(path)
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(ExitCode.BAD_CONFIG)
    sys.exit(ExitCode.OK)


def sample(arguments: argparse.Namespace) -> list[Path]:
    """Make the images; returns their paths. Raises ConfigError for what the user got wrong."""
    run = RunDir(arguments.run)
    weights = run.weights / f"{arguments.weights}.safetensors"
    if not weights.exists():
        raise ConfigError(f"{weights}: no such file; finish the run first (start the same command again)")
    record = read_record(weights)
    changes = {
        "sampler": arguments.sampler,
        "steps": arguments.steps,
        "guidance_scale": arguments.guidance_scale,
        "seed": arguments.seed,
        "batch_size": len(arguments.prompt),
    }
    overrides = [f"sampling.{key}={value}" for key, value in changes.items() if value is not None]
    sampling = load_document(TrainConfig, run.train_yaml, overrides).sampling
    accelerator = ACCELERATORS[arguments.accelerator]
    runtime.start(accelerator, read_identity(environment()), 0, None)

    from mindspore import Tensor

    from vpred_train.gallery import png_of
    from vpred_train.models.networks import FlatSpace, Networks
    from vpred_train.sampling import TextToImage

    networks = Networks(record.model, 0, accelerator.convolution)
    space = FlatSpace(networks)
    tensors = read_tensors(weights, {span.name: span.shape for span in space.spans})
    for parameter, span in zip(space.parameters, space.spans, strict=True):
        parameter.set_data(Tensor(tensors[span.name]))
    pipeline = TextToImage(networks, record.model, record.diffusion, sampling, record.resolution)
    images = pipeline.generate(arguments.prompt, [sampling.seed + index for index in range(len(arguments.prompt))])
    return write_numbered(arguments.output or run.samples, [png_of(image) for image in images])


def write_numbered(folder: Path, files: list[bytes]) -> list[Path]:
    """Write 00000.png ... after the highest number already there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = [int(path.stem) for path in folder.glob("*.png") if path.stem.isdigit()]
        first = max(taken, default=-1) + 1
        paths = [folder / f"{first + index:05d}.png" for index in range(len(files))]
        for path, content in zip(paths, files, strict=True):
            write_atomic(path, content)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot write images ({error.strerror}); give another --output") from None
    return paths


if __name__ == "__main__":
    main()
