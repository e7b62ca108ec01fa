"""Make unet.npz: a small UNet of SD2's structure, as diffusers 0.42.1 (torch 2.13.0) computes it.

    pip install torch==2.13.0 diffusers==0.42.1 transformers && python tests/golden/make_unet.py

Weights come from seeded.py under Stability's names; the renaming here is written for this script alone.
"""

import re
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from seeded import weights

RES_BLOCKS = 2
PARTS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def stability_name(name: str, attended: set[int]) -> str:
    """diffusers' name of a UNet tensor -> Stability's; `attended` are the up blocks with attention."""
    for theirs, ours in ENDS.items():
        if name.startswith(theirs + "."):
            return name.replace(theirs, ours, 1)
    side, rest = re.fullmatch(r"(down_blocks\.\d+|mid_block|up_blocks\.\d+)\.(.+)", name).groups()
    kind, number, tail = re.fullmatch(r"(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", rest).groups()
    number = int(number)
    if kind == "resnets":
        part, tail = tail.split(".", 1)
        tail = f"{PARTS[part]}.{tail}"
    if side == "mid_block":
        return f"middle_block.{1 if kind == 'attentions' else 2 * number}.{tail}"
    level = int(side.split(".")[1])
    within = 1 if kind == "attentions" else 0
    per_level = RES_BLOCKS + 1
    if side.startswith("down"):
        if kind == "downsamplers":
            return f"input_blocks.{(level + 1) * per_level}.0.op.{tail.removeprefix('conv.')}"
        return f"input_blocks.{1 + level * per_level + number}.{within}.{tail}"
    if kind == "upsamplers":
        return f"output_blocks.{level * per_level + RES_BLOCKS}.{2 if level in attended else 1}.{tail}"
    return f"output_blocks.{level * per_level + number}.{within}.{tail}"


def main() -> None:
    model = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64, 64),
        layers_per_block=RES_BLOCKS,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=(2, 4, 4),  # the number of heads, for all its name: 16 channels each
        cross_attention_dim=24,
        norm_num_groups=16,
        use_linear_projection=True,
    ).eval()
    state = {
        name: torch.from_numpy(weights(stability_name(name, {1, 2}), tuple(old.shape)))
        for name, old in model.state_dict().items()
    }
    model.load_state_dict(state)
    rng = np.random.default_rng(0)
    z = rng.standard_normal((2, 4, 8, 12)).astype(np.float32)
    timesteps = np.array([3.0, 987.0], np.float32)
    context = rng.standard_normal((2, 7, 24)).astype(np.float32)
    with torch.no_grad():
        prediction = model(torch.from_numpy(z), torch.from_numpy(timesteps), torch.from_numpy(context)).sample
    names = sorted(stability_name(name, {1, 2}) for name in state)
    np.savez_compressed(
        Path(__file__).with_name("unet.npz"),
        z=z, timesteps=timesteps, context=context, prediction=prediction.numpy(), names=names,
    )  # fmt: skip


if __name__ == "__main__":
    main()
