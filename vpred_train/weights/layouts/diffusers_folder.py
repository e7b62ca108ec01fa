"""Writes the folder that `StableDiffusionPipeline.from_pretrained` of diffusers loads."""

import json
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from launcher.contract.config import ConfigError
from launcher.contract.files import beside, fsync_directory, write_atomic
from vpred_train.config.model import ModelConfig, TextEncoderConfig, UNetConfig, VaeConfig
from vpred_train.diffusion.parameterization import ParameterizationRecord
from vpred_train.weights.formats.safetensors_file import write_safetensors
from vpred_train.weights.formats.stored_tensor import Float32, LazyTensors
from vpred_train.weights.layouts.record_files import PREDICTION_TYPES, RECORD_FILE
from vpred_train.weights.layouts.tensor_names import diffusers_names
from vpred_train.weights.layouts.tensor_shapes import TEXT, UNET, VAE, Shapes
from vpred_train.weights.layouts.weight_source import FOLDERS

Document = dict[str, Any]
Tensors = Mapping[str, Float32]
WRITTEN_FOR = "0.17.0"  # the first diffusers whose VAE attention has the names that we write
START, END = "<|startoftext|>", "<|endoftext|>"


def write_folder(path: Path, shapes: Shapes, tensors: Tensors, record: ParameterizationRecord | None) -> None:
    """Write all files to a temporary folder, then rename it to `path`, which must be new.

    Raises ConfigError: when there is no record (the scheduler needs the prediction type), or the model has no VAE.
    """
    if path.exists():
        raise ConfigError(f"{path}: exists already; give a new folder")
    if record is None:
        raise ConfigError(f"{path}: a diffusers folder must declare the prediction type; give --prediction-type")
    if record.model.vae is None:
        raise ConfigError(f"{path}: the model works on pixels, and a diffusers folder needs a VAE; export as stability")
    aside = beside(path)
    try:
        aside.mkdir()
        for network, prefix in (("unet", UNET), ("vae", VAE), ("text_encoder", TEXT)):
            own = {name: shape for name, shape in shapes.items() if name.startswith(prefix)}
            _write_network(aside / network, own, tensors, record.model)
        for name, document in _documents(record, record.model.vae).items():
            target = aside / name
            target.parent.mkdir(exist_ok=True)
            write_atomic(target, json.dumps(document, indent=2, sort_keys=True) + "\n")
        _write_tokenizer(aside / "tokenizer", record.model.text_encoder)
        write_atomic(aside / RECORD_FILE, record.model_dump_json())
        aside.rename(path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    fsync_directory(path.parent)


def _write_network(folder: Path, shapes: Shapes, tensors: Tensors, model: ModelConfig) -> None:
    folder.mkdir()
    makers: dict[str, Callable[[], Float32]] = {}
    parts: Shapes = {}
    for name, shape in shapes.items():
        names = diffusers_names(name, model)
        is_vae_attention = len(shape) == 4 and ".mid_block.attentions." in names[0]
        inner = shape[:2] if is_vae_attention else shape  # diffusers: linear; ours: a 1x1 convolution
        rows = inner[0] // len(names)
        for number, full in enumerate(names):
            own = full.partition("/")[2]
            parts[own] = (rows, *inner[1:])
            makers[own] = partial(_rows, tensors, name, slice(number * rows, (number + 1) * rows), parts[own])
    target = folder / f"{FOLDERS[folder.name]}.safetensors"
    write_safetensors(target, parts, LazyTensors(makers), {"format": "pt"})  # transformers refuses files without it


def _rows(tensors: Tensors, name: str, rows: slice, shape: tuple[int, ...]) -> Float32:
    return tensors[name][rows].reshape(shape)


def _documents(record: ParameterizationRecord, vae: VaeConfig) -> dict[str, Document]:
    """Return the JSON documents: file name -> content."""
    latent_side = record.resolution // vae.downsampling
    return {
        "model_index.json": {
            "_class_name": "StableDiffusionPipeline",
            "_diffusers_version": WRITTEN_FOR,
            "feature_extractor": [None, None],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["diffusers", "DDIMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
        "scheduler/scheduler_config.json": _scheduler(record),
        "unet/config.json": unet_document(record.model.unet, latent_side),
        "vae/config.json": vae_document(vae, record.resolution),
        "text_encoder/config.json": text_encoder_document(record.model.text_encoder),
    }


def _scheduler(record: ParameterizationRecord) -> Document:
    diffusion = record.diffusion
    zero = diffusion.zero_terminal_snr
    return {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": WRITTEN_FOR,
        "beta_schedule": "scaled_linear",
        "beta_start": diffusion.beta_start,
        "beta_end": diffusion.beta_end,
        "clip_sample": False,
        "num_train_timesteps": diffusion.timesteps,
        "prediction_type": PREDICTION_TYPES[diffusion.prediction_type],
        "rescale_betas_zero_snr": zero,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        # With zero terminal SNR, sampling has to begin at the last timestep (Lin et al. 2023, section 3.3).
        "timestep_spacing": "trailing" if zero else "leading",
        "trained_betas": None,
    }


def unet_document(config: UNetConfig, latent_side: int) -> Document:
    """Make unet/config.json. `latent_side` is in latent pixels."""
    widths = [multiplier * config.model_channels for multiplier in config.channel_multipliers]
    attended = [level in config.attention_levels for level in range(len(widths))]
    return {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": WRITTEN_FOR,
        "act_fn": "silu",
        "attention_head_dim": [width // config.head_channels for width in widths],  # in diffusers: the number of heads
        "block_out_channels": widths,
        "cross_attention_dim": config.context_channels,
        "down_block_types": ["CrossAttnDownBlock2D" if each else "DownBlock2D" for each in attended],
        "up_block_types": ["CrossAttnUpBlock2D" if each else "UpBlock2D" for each in reversed(attended)],
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": config.in_channels,
        "out_channels": config.in_channels,
        "layers_per_block": config.res_blocks,
        "norm_eps": 1e-5,
        "norm_num_groups": config.norm_groups,
        "sample_size": latent_side,
        "use_linear_projection": True,
    }


def vae_document(config: VaeConfig, resolution: int) -> Document:
    """Make vae/config.json. `resolution` is in pixels."""
    levels = len(config.channel_multipliers)
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": WRITTEN_FOR,
        "act_fn": "silu",
        "block_out_channels": [multiplier * config.channels for multiplier in config.channel_multipliers],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": config.latent_channels,
        "layers_per_block": config.res_blocks,
        "norm_num_groups": config.norm_groups,
        "sample_size": resolution,
        "scaling_factor": config.scale,
    }


def text_encoder_document(config: TextEncoderConfig) -> Document:
    """Make text_encoder/config.json."""
    return {
        "architectures": ["CLIPTextModel"],
        "bos_token_id": config.vocabulary_size - 2,
        "eos_token_id": config.vocabulary_size - 1,
        "pad_token_id": 0,
        "hidden_act": "gelu",
        "hidden_size": config.width,
        "intermediate_size": 4 * config.width,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": config.context_length,
        "model_type": "clip_text_model",
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "torch_dtype": "float32",
        "vocab_size": config.vocabulary_size,
    }


def _write_tokenizer(folder: Path, config: TextEncoderConfig) -> None:
    """Write CLIP's vocabulary in the file formats of transformers."""
    from vpred_train.text.tokenizer import Tokenizer

    tokenizer = Tokenizer(config.context_length)
    numbers = tokenizer.numbers
    words = {word: number for word, number in numbers.items() if number < tokenizer.start}
    folder.mkdir()
    vocabulary = words | {START: tokenizer.start, END: tokenizer.end}
    write_atomic(folder / "vocab.json", json.dumps(vocabulary, ensure_ascii=False))
    merges = "\n".join(" ".join(merge) for merge in tokenizer.ranks)
    write_atomic(folder / "merges.txt", f"#version: 0.2\n{merges}\n")
    padding = END if config.padding == "end" else "!"  # "!" is token 0
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": padding}
    options = {"tokenizer_class": "CLIPTokenizer", "model_max_length": config.context_length, "do_lower_case": True}
    write_atomic(folder / "special_tokens_map.json", json.dumps(special, indent=2))
    write_atomic(folder / "tokenizer_config.json", json.dumps(special | options, indent=2))
