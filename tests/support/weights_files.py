"""A narrow model of SD2's structure, and files of it under the names of the published listing."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from support import GOLDEN
from vpred_train.config.diffusion import DiffusionConfig
from vpred_train.config.model import ModelConfig, TextEncoderConfig, UNetConfig, VaeConfig
from vpred_train.diffusion.parameterization import ParameterizationRecord
from vpred_train.weights.formats.containers import open_contents
from vpred_train.weights.layouts.read_write import write_weights
from vpred_train.weights.layouts.tensor_shapes import stability_shapes

Arrays = dict[str, NDArray[Any]]
LISTING = GOLDEN / "sd2_names.tsv"
ROWS = [line.split("\t") for line in LISTING.read_text().splitlines() if not line.startswith("#")]
MINDONE = {row[3]: row[0] for row in ROWS}
DIFFUSERS = {row[3]: row[4] for row in ROWS}
MODEL = ModelConfig(
    unet=UNetConfig(
        in_channels=4,
        model_channels=8,
        channel_multipliers=(1, 2, 4, 4),
        res_blocks=2,
        attention_levels=(0, 1, 2),
        head_channels=8,
        context_channels=8,
        norm_groups=4,
    ),
    text_encoder=TextEncoderConfig(width=8, heads=2, layers=23),
    vae=VaeConfig(channels=8, norm_groups=4),
)
SHAPES = stability_shapes(MODEL)
RECORD = ParameterizationRecord(
    weights="ema", samples_seen=80, resolution=768, diffusion=DiffusionConfig(zero_terminal_snr=True), model=MODEL
)
TINY = ModelConfig(
    unet=UNetConfig(
        model_channels=8,
        channel_multipliers=(1, 2),
        res_blocks=1,
        attention_levels=(1,),
        head_channels=8,
        context_channels=8,
        norm_groups=4,
    ),
    text_encoder=TextEncoderConfig(width=8, heads=2, layers=1, context_length=8),
    vae=VaeConfig(channels=8, norm_groups=4, channel_multipliers=(1, 2), res_blocks=1),
)
TINY_RECORD = ParameterizationRecord(
    weights="ema", samples_seen=80, resolution=16, diffusion=DiffusionConfig(beta_end=0.013), model=TINY
)
NEWER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def random_tensors(seed: int = 0) -> Arrays:
    """Under Stability's names."""
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in SHAPES.items()}


def networks(tensors: Arrays, older: bool = False, text_prefix: str = "text_model.") -> dict[str, Arrays]:
    """Folder -> tensors under diffusers' names, split and squeezed as the listing tells."""
    folders: dict[str, Arrays] = {"unet": {}, "vae": {}, "text_encoder": {}}
    for stability, tensor in tensors.items():
        folder, entry = DIFFUSERS[stability].split("/", 1)
        name = re.sub(r" [(\[].*", "", entry)
        if "{" in name:
            for part, rows in zip("qkv", np.split(tensor, 3), strict=True):
                own = name.replace("{q,k,v}", part).replace("text_model.", text_prefix)
                folders[folder][own] = np.ascontiguousarray(rows)
            continue
        if " [" in entry:
            tensor = tensor.reshape(tensor.shape[:2])
        if folder == "vae" and not older:
            name = re.sub(r"\.(query|key|value|proj_attn)\.", lambda match: f".{NEWER[match[1]]}.", name)
        folders[folder][name.replace("text_model.", text_prefix)] = tensor
    return folders


def write_diffusers(path: Path, folders: dict[str, Arrays], variant: str = "") -> None:
    for folder, arrays in folders.items():
        (path / folder).mkdir(parents=True)
        stem = "model" if folder == "text_encoder" else "diffusion_pytorch_model"
        save_file(arrays, path / folder / f"{stem}{variant}.safetensors")


def write_sparse(path: Path, dtype: str, item_bytes: int, marks: tuple[str, ...] = ()) -> None:
    """SD2's tensors at full size in Stability's layout, all zero, in a file that takes no room on disk."""
    header: dict[str, Any] = {}
    at = 0
    for name, shape in stability_shapes(ModelConfig()).items():
        stop = at + item_bytes * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, stop]}
        at = stop
    header |= {mark: {"dtype": "F32", "shape": [0], "data_offsets": [at, at]} for mark in marks}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)


def write_tiny(path: Path, layout: str) -> None:
    """Random weights of `TINY` with their record."""
    rng = np.random.default_rng(0)
    shapes = stability_shapes(TINY)
    tensors = {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}
    write_weights(path, tensors, layout, TINY_RECORD)


def float32s(path: Path) -> dict[str, Any]:
    return {name: tensor.float32() for name, tensor in open_contents(path).tensors.items()}


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], array, strict=True)
