"""Make unet.npz: a small UNet of SD2's structure, as diffusers 0.42.1 (torch 2.13.0) computes it.

    pip install torch==2.13.0 diffusers==0.42.1 transformers && python tests/golden/make_unet.py

Weights come from seeded.py under Stability's names; the renaming here is written for this script alone.
"""

import re
import sys
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


SMALL = dict(
    block_out_channels=(32, 64, 64),
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    attention_head_dim=(2, 4, 4),  # the number of heads, for all its name: 16 channels each
    cross_attention_dim=24,
    norm_num_groups=16,
)
SD2 = dict(
    block_out_channels=(320, 640, 1280, 1280),
    down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    attention_head_dim=(5, 10, 20, 20),
    cross_attention_dim=1024,
    norm_num_groups=32,
)


def predict(config: dict, side: int, tokens: int) -> dict[str, np.ndarray]:
    """Inputs, names and prediction of one seeded network."""
    model = UNet2DConditionModel(
        sample_size=side, layers_per_block=RES_BLOCKS, use_linear_projection=True, **config
    ).eval()
    attended = set(range(1, len(config["block_out_channels"])))
    names = {name: stability_name(name, attended) for name in model.state_dict()}
    for name, parameter in model.state_dict().items():
        parameter.copy_(torch.from_numpy(weights(names[name], tuple(parameter.shape))))
    rng = np.random.default_rng(0)
    z = rng.standard_normal((2, 4, side, side + 4)).astype(np.float32)
    timesteps = np.array([3.0, 987.0], np.float32)
    context = rng.standard_normal((2, tokens, config["cross_attention_dim"])).astype(np.float32)
    with torch.no_grad():
        prediction = model(torch.from_numpy(z), torch.from_numpy(timesteps), torch.from_numpy(context)).sample
    return dict(
        z=z, timesteps=timesteps, context=context, prediction=prediction.numpy(), names=np.array(sorted(names.values()))
    )


if __name__ == "__main__":
    if sys.argv[1:]:  # the file for compare_full_size.py
        np.savez_compressed(sys.argv[1], **predict(SD2, 28, 77))
    else:
        # Sides 6 and 10: odd ones after halving.
        np.savez_compressed(Path(__file__).with_name("unet.npz"), **predict(SMALL, 6, 7))
