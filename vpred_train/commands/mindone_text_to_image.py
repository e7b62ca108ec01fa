"""`vpred-text-to-image`: MindONE's text_to_image command line, answered by `vpred-sample`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from launcher.contract.command_line import command_line
from launcher.contract.config import ConfigError
from vpred_train.commands import sample
from vpred_train.foreign import finite_number
from vpred_train.weights.lora.files import open_base, open_lora
from vpred_train.weights.record_lookup import find_record

GUIDANCE_SCALE = 9.0  # MindONE's for SD 2.x
# VERSIONS: version -> what the network predicts, and the side of its images in pixels. CONFIGS: MindONE's inference
# configuration -> version.
VERSIONS = {"2.0": ("eps", 512), "2.1": ("eps", 512), "2.0-v": ("v", 768), "2.1-v": ("v", 768)}
DEFAULT_VERSION = "2.1"
CONFIGS = {"v2-inference.yaml": "2.1", "v2-vpred-inference.yaml": "2.1-v"}
SAMPLERS = {"ddim": "ddim", "dpm_solver": "dpm_solver_2", "plms": "plms", "uni_pc": "unipc"}

# Flags from MindONE's recipes and READMEs that have no effect here.
WITHOUT_EFFECT = {
    "ms_mode": "the networks always run in graph mode",
    "jit_level": "the accelerator decides how graphs are compiled",
    "use_parallel": "under mpirun the ranks always share the prompts",
    "device_target": "give --accelerator to vpred-sample",
    "log_level": "the level is fixed",
    "n_rows": "the grid is as square as possible",
    "fixed_code": "every image has its own seed",
    "lora_rank": "the LoRA file declares it",
    "lora_ft_unet": "the LoRA file declares which networks it adapts",
    "lora_ft_text_encoder": "the LoRA file declares which networks it adapts",
}
# Flags that would change the image: ignoring them would give another image than was requested.
REFUSED = {
    "ti_ckpt_path": "textual inversion",
    "support_long_prompts": "prompts of more than one piece",
    "add_watermark": "watermarks",
    "check_safety": "the safety checker",
}


def build_parser() -> argparse.ArgumentParser:
    """Build a parser of MindONE's flags with MindONE's defaults. Only the size defaults to that of the weights."""
    parser = argparse.ArgumentParser(prog="vpred-text-to-image", description=__doc__)
    parser.add_argument("--prompt", default="A cute wolf in winter forest")
    parser.add_argument("--data_path", type=Path, help="text file with one prompt per line; instead of --prompt")
    parser.add_argument("--negative_prompt", default="")
    parser.add_argument("--negative_data_path", type=Path, help="text file with one negative prompt per line")
    parser.add_argument(
        "-v", "--version", choices=sorted(VERSIONS), help="version of weights that do not declare what they predict"
    )
    parser.add_argument(
        "--config", type=Path, help="v2-inference.yaml or v2-vpred-inference.yaml; instead of --version"
    )
    parser.add_argument(
        "--output_path",
        type=Path,
        default=Path("output"),
        help="folder: images go to OUTPUT_PATH/samples, a sheet of all images to OUTPUT_PATH/grids",
    )
    parser.add_argument(
        "--ckpt_path",
        type=Path,
        required=True,
        help="weights file in our, MindONE's or Stability's layout, or a diffusers folder",
    )
    parser.add_argument("--sampling_steps", type=int, default=20)
    parser.add_argument("--n_iter", type=int, default=2, help="number of batches per prompt")
    parser.add_argument("--n_samples", type=int, default=4, help="images per batch")
    parser.add_argument("--scale", type=finite_number, default=GUIDANCE_SCALE, help="guidance scale")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--H", type=int, help="height of the images in pixels (default: that of the training images)")
    parser.add_argument("--W", type=int, help="width of the images in pixels (default: that of the training images)")
    parser.add_argument("--ddim_eta", type=finite_number, default=0.0)
    parser.add_argument(
        "--use_lora", nargs="?", const="True", default="False", help="add the weights of --lora_ckpt_path"
    )
    parser.add_argument("--lora_ckpt_path", type=Path, help="LoRA weights in our, MindONE's or diffusers' layout")
    parser.add_argument("--lora_scale", type=finite_number, default=1.0, help="factor of the LoRA weights")
    parser.add_argument("--skip_grid", nargs="?", const="True", default="False", help="write no sheet of all images")
    for flag in SAMPLERS:
        parser.add_argument(f"--{flag}", action="store_true")
    for flag, reason in WITHOUT_EFFECT.items():
        parser.add_argument(f"--{flag}", nargs="?", const="", help=f"no effect: {reason}")
    for flag, what in REFUSED.items():
        parser.add_argument(f"--{flag}", nargs="?", const="True", help=f"refused: no support for {what}")
    return parser


@command_line(ConfigError)
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line as `vpred-sample`, and return its exit code."""
    arguments = build_parser().parse_args(argv)
    for flag, what in REFUSED.items():
        if is_given(getattr(arguments, flag)):
            raise ConfigError(f"--{flag}: there is no support for {what} here; leave it out")
    chosen = [flag for flag in SAMPLERS if getattr(arguments, flag)]
    if len(chosen) > 1:
        raise ConfigError(f"{' and '.join(f'--{flag}' for flag in chosen)}: give one sampler")
    for flag, reason in WITHOUT_EFFECT.items():
        if getattr(arguments, flag) is not None:
            print(f"note: --{flag} has no effect: {reason}", file=sys.stderr)
    words = translate(arguments, SAMPLERS[chosen[0]] if chosen else "dpmpp_2m") + lora(arguments)
    return sample.main(words + prediction(arguments))


def is_given(value: str | None) -> bool:
    """Return whether a flag is set that MindONE reads as a boolean or a path."""
    return value not in (None, "", "False", "false")


def lora(arguments: argparse.Namespace) -> list[str]:
    """Return the options of the LoRA weights to add. MindONE reads --lora_ckpt_path only with --use_lora True.

    Raises ConfigError: when --use_lora comes without a file.
    """
    if not is_given(arguments.use_lora):
        return []
    if arguments.lora_ckpt_path is None:
        raise ConfigError("--use_lora: it needs --lora_ckpt_path; give the file of LoRA weights")
    return ["--lora", str(arguments.lora_ckpt_path), f"--lora-scale={arguments.lora_scale}"]


def prediction(arguments: argparse.Namespace) -> list[str]:
    """Return the options that declare what the weights predict.

    They come from --version or --config. Without these, none are needed when the weights declare it; otherwise
    MindONE's default is used.
    Raises ConfigError: for an unknown --config, or weights that cannot be read.
    """
    version = arguments.version
    if version is None and arguments.config is not None:
        version = CONFIGS.get(arguments.config.name)
        if version is None:
            raise ConfigError(
                f"--config: found {arguments.config} (known: {', '.join(CONFIGS)}); give --version instead"
            )
    if version is None:
        lora_source = open_lora(arguments.lora_ckpt_path) if lora(arguments) else None
        if find_record(open_base(arguments.ckpt_path, lora_source), lora=lora_source) is not None:
            return []
        version = DEFAULT_VERSION
        print(
            f"note: the weights do not declare what they predict; using version {version}, see --version",
            file=sys.stderr,
        )
    prediction_type, resolution = VERSIONS[version]
    return ["--prediction-type", prediction_type, "--resolution", str(resolution)]


def translate(arguments: argparse.Namespace, sampler: str) -> list[str]:
    """Return the same request as arguments of `vpred-sample`."""
    words = ["--ckpt", str(arguments.ckpt_path), "--output", str(arguments.output_path / "samples")]
    if not is_given(arguments.skip_grid):
        words += ["--grid", str(next_grid(arguments.output_path / "grids"))]
    words += (
        ["--prompt", arguments.prompt] if arguments.data_path is None else ["--prompts-file", str(arguments.data_path)]
    )
    if arguments.negative_data_path is None:
        words.append(f"--negative-prompt={arguments.negative_prompt}")
    else:
        words += ["--negative-prompts-file", str(arguments.negative_data_path)]
    values = {
        "images-per-prompt": arguments.n_iter * arguments.n_samples,
        "batch-size": arguments.n_samples,
        "sampler": sampler,
        "steps": arguments.sampling_steps,
        "eta": arguments.ddim_eta if sampler == "ddim" else None,
        "guidance-scale": arguments.scale,
        "seed": arguments.seed,
        "height": arguments.H,
        "width": arguments.W,
    }
    for name, value in values.items():
        if value is not None:
            words += [f"--{name}={value}"]
    return words


def next_grid(folder: Path) -> Path:
    """Return the path of the next grid, such as grid_00000.png, after the highest number in the folder."""
    numbers = (path.stem.removeprefix("grid_") for path in folder.glob("grid_*.png"))
    return folder / f"grid_{max((int(number) for number in numbers if number.isdecimal()), default=-1) + 1:05d}.png"
