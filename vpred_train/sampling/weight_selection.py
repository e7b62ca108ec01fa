"""Selects the weights that the command line of `vpred-sample` names: full ones, and LoRA's that are added to them."""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from launcher.contract.config import ConfigError, load_document
from launcher.contract.run_dir import RunDir
from vpred_train.config.train import TrainConfig
from vpred_train.diffusion.parameterization import ParameterizationRecord
from vpred_train.foreign import finite_number
from vpred_train.sampling.image_request import ImageRequest, LoraRequest
from vpred_train.weights.layouts.read_write import WeightSet, resolve_weight_set
from vpred_train.weights.layouts.weight_source import weights_digest
from vpred_train.weights.lora.files import base_mismatch, open_base, open_lora, with_lora
from vpred_train.weights.record_lookup import add_options, declared_by, require_record


@dataclass(frozen=True)
class RequestedWeights:
    """Holds the paths that the command line names. `recipe` is that of --run."""

    weights: Path | None
    which: WeightSet
    lora: Path | None
    recipe: TrainConfig | None


@dataclass(frozen=True)
class SelectedWeights:
    """Holds weights that were opened and fit.

    record: what the weights predict together, and which set of `path` is used
    """

    path: Path
    xxh3: str
    lora: LoraRequest | None
    record: ParameterizationRecord


def add_weights_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `requested` and `select` read."""
    source = parser.add_argument_group("weights (one of them; --like alone uses the file that made its image)")
    source.add_argument("--run", type=Path, help="run directory of a finished training")
    source.add_argument(
        "--ckpt", type=Path, help="weights file in our, MindONE's or Stability's layout, or a diffusers folder"
    )
    source.add_argument("--weights", choices=("ema", "raw"), help="set of weights (default: ema if there is one)")
    source.add_argument(
        "--lora", type=Path, help="LoRA weights in our, MindONE's or diffusers' layout, added to those of --ckpt"
    )
    source.add_argument("--lora-scale", type=finite_number, help="factor of the LoRA weights (default: 1)")
    add_options(parser)


def requested(arguments: argparse.Namespace) -> RequestedWeights:
    """Return what --run, --ckpt and --lora name. A run that trained LoRA names both base weights and LoRA.

    Raises ConfigError: when options contradict each other, or a file is missing.
    """
    if arguments.run is not None and arguments.ckpt is not None:
        raise ConfigError("--run and --ckpt: both name weights; give one of them")
    if arguments.lora is not None and not arguments.lora.exists():
        raise ConfigError(f"{arguments.lora}: no such file or folder; give LoRA weights")
    which: WeightSet = arguments.weights or "auto"
    if arguments.run is None:
        if arguments.ckpt is not None and not arguments.ckpt.exists():
            raise ConfigError(f"{arguments.ckpt}: no such file or folder; give a file of weights or a diffusers folder")
        return RequestedWeights(arguments.ckpt, which, arguments.lora, None)
    run = RunDir(arguments.run)
    path = run.weights / f"{arguments.weights or 'ema'}.safetensors"
    if not path.exists():
        raise ConfigError(f"{path}: no such file or folder; finish the run first (start the same command again)")
    recipe = load_document(TrainConfig, run.train_yaml)
    if recipe.lora is None or recipe.pretrained is None:
        return RequestedWeights(path, which, arguments.lora, recipe)
    if arguments.lora is not None:
        raise ConfigError("--lora: the run has LoRA weights of its own; give --ckpt with --lora instead of --run")
    base = recipe.pretrained
    if not base.path.exists():
        raise ConfigError(
            f"{base.path}: no such file or folder, but {run.root} adapts it; give --ckpt and --lora {path}"
        )
    return RequestedWeights(base.path, base.weights, path, recipe)


def select(arguments: argparse.Namespace, named: RequestedWeights) -> SelectedWeights:
    """Open the named weights and check that they fit. Raises ConfigError: when they do not, or none is named."""
    if named.weights is None:
        raise ConfigError("no weights: give --run RUN_DIR, --ckpt FILE or --like IMAGE")
    if named.lora is None and arguments.lora_scale is not None:
        raise ConfigError("--lora-scale: it needs --lora; give both or none")
    lora = None if named.lora is None else open_lora(named.lora)
    source = open_base(named.weights, lora)
    record = require_record(source, named.which, declared=declared_by(arguments), lora=lora)
    kind = resolve_weight_set(source, named.which, record.model)
    strength = 1.0 if arguments.lora_scale is None else arguments.lora_scale
    with_lora(source, kind, lora, strength)
    request, xxh3 = None, weights_digest(named.weights)
    if lora is not None:
        run_adapts = named.recipe is not None and named.recipe.lora is not None
        if run_adapts and (fault := base_mismatch(lora, named.weights, xxh3)):
            raise ConfigError(fault)  # an error, since only the run named this file, not the user
        request = LoraRequest(path=lora.path.resolve(), xxh3=weights_digest(lora.path), scale=strength)
    record = record.model_copy(update={"weights": kind})
    return SelectedWeights(named.weights.resolve(), xxh3, request, record)


def warn_of_other_base(request: ImageRequest) -> None:
    """Print one line to standard error when LoRA was trained on other weights than those that it is added to."""
    if request.lora is None:
        return
    if fault := base_mismatch(open_lora(request.lora.path), request.weights, request.weights_xxh3):
        print(f"warning: {fault}", file=sys.stderr)


def same_weights(request: ImageRequest, named: RequestedWeights, image: Path) -> ImageRequest:
    """Return the request of `image` with the paths replaced by those named on the command line, if any.

    Raises ConfigError: when a file's content differs from that which made the image.
    """
    weights = named.weights or request.weights
    _same(weights, request.weights_xxh3, image, "--run or --ckpt")
    if request.lora is None:
        if named.lora is not None:
            raise ConfigError(f"--lora: {image} was made without LoRA; leave it out")
        return request.model_copy(update={"weights": weights.resolve()})
    path = named.lora or request.lora.path
    _same(path, request.lora.xxh3, image, "--lora")
    lora = request.lora.model_copy(update={"path": path.resolve()})
    return request.model_copy(update={"weights": weights.resolve(), "lora": lora})


def _same(path: Path, xxh3: str, image: Path, options: str) -> None:
    try:
        found = weights_digest(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); name the weights with {options}") from None
    if found != xxh3:
        raise ConfigError(
            f"{path}: xxh3 is {found}, but {image} was made with {xxh3}; name the right weights with {options}"
        )
