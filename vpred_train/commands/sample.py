"""`vpred-sample`: images from trained weights; under mpirun or msrun the ranks share them out."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from launcher.contract.accelerators import ACCELERATORS, Accelerator
from launcher.contract.command_line import command_line
from launcher.contract.config import ConfigError
from launcher.contract.config_errors import first_mistake
from launcher.contract.exit_codes import ExitCode
from launcher.contract.files import write_atomic
from launcher.contract.run_dir import RunDir
from vpred_train.config.sampling import SamplingConfig
from vpred_train.distributed.collectives import Collective
from vpred_train.distributed.session import rank_session
from vpred_train.errors import USER_ERRORS
from vpred_train.sampling.image_request import ImageRequest, read_request
from vpred_train.sampling.prompts import read_negative_prompts, read_prompts, warn_of_long_prompts
from vpred_train.sampling.weight_selection import (
    add_weights_options,
    requested,
    same_weights,
    select,
    warn_of_other_base,
)
from vpred_train.weights.layouts.weight_source import open_weights
from vpred_train.weights.lora.files import open_lora


def build_parser() -> argparse.ArgumentParser:
    """Build the parser. Options that are not given are None, and come from the recipe or from --like's image."""
    parser = argparse.ArgumentParser(prog="vpred-sample", description=__doc__)
    add_weights_options(parser)
    images = parser.add_argument_group("images")
    images.add_argument("--prompt", action="append", help="text that the image should show; may be given several times")
    images.add_argument("--prompts-file", type=Path, help="text file with one prompt per line")
    images.add_argument("--negative-prompt", help="text that the image should not show")
    images.add_argument(
        "--negative-prompts-file", type=Path, help="text file with one negative prompt per prompt; lines may be blank"
    )
    images.add_argument("--images-per-prompt", type=int, help="(default: 1)")
    images.add_argument("--height", type=int, help="height in pixels (default: that of the training images)")
    images.add_argument("--width", type=int, help="width in pixels (default: that of the training images)")
    images.add_argument("--sampler", help="dpmpp_2m, ddim, unipc ... (default: the recipe's)")
    images.add_argument("--steps", type=int, help="sampling steps (default: the recipe's)")
    images.add_argument("--timestep-spacing", help="trailing, leading, linspace or karras (default: the recipe's)")
    images.add_argument(
        "--eta", type=float, help="share of fresh noise in ddim's steps, 0 to 1 (default: the recipe's)"
    )
    images.add_argument(
        "--guidance-scale", type=float, help="strength of the guidance; 1: none (default: the recipe's)"
    )
    images.add_argument(
        "--guidance-rescale",
        type=float,
        help="how far guided images get back the contrast of unguided ones, 0 to 1 (default: the recipe's)",
    )
    images.add_argument(
        "--batch-size", type=int, help="images at a time (default: the recipe's, at most the requested number)"
    )
    images.add_argument(
        "--seed", type=int, help="seed of the first image; each further image adds 1 (default: the recipe's)"
    )
    images.add_argument("--like", type=Path, help="PNG that this command made: make the same image again, bit for bit")
    parser.add_argument("--output", type=Path, help="folder for the images (default: RUN/samples)")
    parser.add_argument("--grid", type=Path, metavar="FILE.png", help="also write a sheet of all images")
    parser.add_argument("--accelerator", choices=sorted(ACCELERATORS), default="cpu")
    return parser


REQUESTED = (
    "prompt",
    "prompts_file",
    "negative_prompt",
    "negative_prompts_file",
    "images_per_prompt",
    "height",
    "width",
)
SETTINGS = (
    "sampler",
    "steps",
    "timestep_spacing",
    "eta",
    "guidance_scale",
    "guidance_rescale",
    "batch_size",
    "seed",
)


@command_line(*USER_ERRORS)
def main(argv: Sequence[str] | None = None) -> int:
    """Make the images as this process's rank, and print their paths."""
    arguments = build_parser().parse_args(argv)
    with rank_session(ACCELERATORS[arguments.accelerator]) as session:
        requests = plan(arguments)
        if session.is_first:
            texts = [text for request in requests for text in (request.prompt, request.negative_prompt)]
            warn_of_long_prompts(texts, requests[0].record.model.text_encoder)
            warn_of_other_base(requests[0])
        if arguments.grid is not None:
            require_grid(arguments.grid)
        folder = output_folder(arguments)
        paths = make_images(requests, folder, session.accelerator, session.start(), arguments.grid)
    for path in paths:
        print(path)
    return ExitCode.OK


def plan(arguments: argparse.Namespace) -> list[ImageRequest]:
    """List all requested images, in order. Raises ConfigError: for the user's mistakes."""
    if arguments.like is not None:
        return [like(arguments)]
    named = requested(arguments)
    selected = select(arguments, named)
    record = selected.record
    recipe = SamplingConfig() if named.recipe is None else named.recipe.sampling
    count = 1 if arguments.images_per_prompt is None else arguments.images_per_prompt
    if count < 1:
        raise ConfigError(f"--images-per-prompt: found {count} (must be at least 1)")
    once = read_prompts(arguments.prompt or [], arguments.prompts_file)
    negatives = read_negative_prompts(arguments.negative_prompt, arguments.negative_prompts_file, len(once))
    prompts = [pair for pair in zip(once, negatives, strict=True) for _ in range(count)]
    given = {key: getattr(arguments, key) for key in SETTINGS if getattr(arguments, key) is not None}
    given.setdefault("batch_size", min(recipe.batch_size, len(prompts)))
    try:
        sampling = SamplingConfig.model_validate(recipe.model_dump() | given)
        common = ImageRequest(
            prompt="",
            height=record.resolution if arguments.height is None else arguments.height,
            width=record.resolution if arguments.width is None else arguments.width,
            sampling=sampling,
            weights=selected.path,
            weights_xxh3=selected.xxh3,
            lora=selected.lora,
            record=record,
        )
    except ValidationError as error:
        first = first_mistake(error)
        if not first.keys:  # several settings contradict each other
            raise ConfigError(f"command line: {first.reason}") from None
        option = first.keys[-1].replace("_", "-")
        raise ConfigError(f"--{option}: found {first.found!r} ({first.reason})") from None
    if sampling.seed + len(prompts) > 1 << 63:
        raise ConfigError(
            f"--seed: found {sampling.seed} (the seeds of {len(prompts)} images would exceed 2^63); give a smaller one"
        )
    require_whole_latents(common, "--")
    return [numbered(common, index, *pair) for index, pair in enumerate(prompts)]


def require_whole_latents(request: ImageRequest, prefix: str) -> None:
    """Raise ConfigError when a size is no multiple of the pixels of one latent."""
    unit = request.record.model.pixels_per_latent
    for name, pixels in (("height", request.height), ("width", request.width)):
        if pixels % unit:
            raise ConfigError(f"{prefix}{name}: found {pixels} (must be a multiple of {unit} for these weights)")


def numbered(common: ImageRequest, index: int, prompt: str, negative_prompt: str) -> ImageRequest:
    """Return the request of image `index`, with its prompts, seed and row."""
    sampling = common.sampling.model_copy(update={"seed": common.sampling.seed + index})
    return common.model_copy(
        update={
            "prompt": prompt,
            "negative_prompt": negative_prompt,
            "sampling": sampling,
            "row": index % sampling.batch_size,
        }
    )


def like(arguments: argparse.Namespace) -> ImageRequest:
    """Return the request inside --like's image, with the weights that made it.

    Raises ConfigError: when other settings or weights are given, or the image holds no request.
    """
    taken = (*REQUESTED, *SETTINGS, "lora_scale")
    extra = [f"--{name.replace('_', '-')}" for name in taken if getattr(arguments, name) is not None]
    if extra:
        raise ConfigError(f"--like: takes all settings from its image; leave out {', '.join(extra)}")
    request = read_request(arguments.like)
    require_whole_latents(request, f"{arguments.like}: its settings: ")
    return same_weights(request, requested(arguments), arguments.like)


def output_folder(arguments: argparse.Namespace) -> Path:
    """Return the folder of the images. Raises ConfigError: when it cannot be written."""
    folder: Path = arguments.output or (Path("samples") if arguments.run is None else RunDir(arguments.run).samples)
    require_writable(folder, "--output")
    return folder


def require_grid(path: Path) -> None:
    """Raise ConfigError when the sheet of all images cannot be written as `path`."""
    if path.suffix.lower() != ".png" or path.is_dir():
        raise ConfigError(f"--grid: found {path}; give the name of a file that ends with .png")
    require_writable(path.parent, "--grid")


def require_writable(folder: Path, option: str) -> None:
    """Make the folder. Raises ConfigError: when nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".vpred-sample-probe"
        write_atomic(probe, b"")
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot write images ({error.strerror}); give another {option}") from None


def make_images(
    requests: Sequence[ImageRequest],
    folder: Path,
    accelerator: Accelerator,
    collective: Collective,
    grid: Path | None = None,
) -> list[Path]:
    """Make this rank's share of the images, and return the paths that it wrote.

    The files are 00000.png and so on, after the highest number in the folder.

    requests: differ only in prompts, seed and row
    grid: file of a sheet with all images, which rank 0 also writes
    Raises ConfigError: before any image is written, when one is not finite.
    """
    from vpred_train.sampling.images import contact_sheet, png_of
    from vpred_train.sampling.pipeline import require_finite_images

    # Only rank 0 looks for the first free number, so that numbers never collide.
    first = collective.broadcast_object(first_free_number(folder) if collective.rank == 0 else None)
    # Batches are never split among ranks, so that an image has the same row in its batch on any number of ranks.
    batch = requests[0].sampling.batch_size
    shares = [
        [index for index in range(len(requests)) if index // batch % collective.world_size == rank]
        for rank in range(collective.world_size)
    ]
    mine = shares[collective.rank]
    common = requests[0]
    images = np.empty((0, 3, common.height, common.width), np.float32)
    if mine:
        # An image of --like is made alone: copies of it fill the rows before its row.
        filled = [requests[mine[0]]] * common.row + [requests[index] for index in mine]
        images = load_pipeline(common, accelerator).generate(
            [request.prompt for request in filled],
            [request.sampling.seed for request in filled],
            [request.negative_prompt for request in filled],
        )[common.row :]
    require_finite_images(images)
    paths = [folder / f"{first + index:05d}.png" for index in mine]
    for path, image, index in zip(paths, images, mine, strict=True):
        write_atomic(path, png_of(image, requests[index].png_text()))
    parts = collective.allgather_object(images if grid else None)  # also keeps all ranks here until all are done
    if grid and collective.rank == 0:
        everything = np.empty((len(requests), *images.shape[1:]), np.float32)
        for share, part in zip(shares, parts, strict=True):
            everything[share] = part
        write_atomic(grid, contact_sheet(everything))
    return paths


def first_free_number(folder: Path) -> int:
    """Return one more than the highest number of an image in the folder."""
    return max((int(path.stem) for path in folder.glob("*.png") if path.stem.isdecimal()), default=-1) + 1


def load_pipeline(request: ImageRequest, accelerator: Accelerator) -> Any:
    """Load the text-to-image pipeline of the request's weights. Raises ConfigError: when they cannot be used."""
    from vpred_train.sampling.pipeline import TextToImage

    record = request.record
    return TextToImage.from_weights(
        open_weights(request.weights, record.model),
        request.sampling,
        request.height,
        request.width,
        record=record,
        lora=None if request.lora is None else open_lora(request.lora.path),
        lora_scale=request.lora.scale if request.lora else 1.0,
    )


if __name__ == "__main__":
    sys.exit(main())
