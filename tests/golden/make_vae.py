"""Make vae.npz: a small autoencoder of SD2's structure, as diffusers 0.42.1 (torch 2.13.0) computes it.

    pip install torch==2.13.0 diffusers==0.42.1 && python tests/golden/make_vae.py

Weights come from seeded.py under Stability's names; the renaming here is written for this script alone.
"""

import re
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from seeded import weights

SMALL = dict(block_out_channels=(32, 64, 96, 96), norm_num_groups=16)
SD2 = dict(block_out_channels=(128, 256, 512, 512), norm_num_groups=32)
DEEPEST = 3
RENAMED = {
    r"\bdown_blocks\.(\d)\.": r"down.\1.",
    r"\bmid_block\.resnets\.0\.": "mid.block_1.",
    r"\bmid_block\.resnets\.1\.": "mid.block_2.",
    r"\bmid_block\.attentions\.0\.": "mid.attn_1.",
    r"\bresnets\.": "block.",
    r"\bdownsamplers\.0\.": "downsample.",
    r"\bupsamplers\.0\.": "upsample.",
    r"\bconv_shortcut\.": "nin_shortcut.",
    r"\bconv_norm_out\.": "norm_out.",
    r"\bgroup_norm\.": "norm.",
    r"\bto_([qkv])\.": r"\1.",
    r"\bto_out\.0\.": "proj_out.",
}


def stability_name(name: str) -> str:
    """diffusers' name of an autoencoder's tensor -> Stability's, which counts the decoder's levels from the finest."""
    name = re.sub(r"\bup_blocks\.(\d)\.", lambda found: f"up.{DEEPEST - int(found[1])}.", name)
    for theirs, ours in RENAMED.items():
        name = re.sub(theirs, ours, name)
    return name


def results(config: dict, height: int, width: int) -> dict[str, np.ndarray]:
    """Inputs, names and outputs of one seeded network."""
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        **config,
    ).eval()
    names = {name: stability_name(name) for name in model.state_dict()}
    for name, parameter in model.state_dict().items():
        parameter.copy_(torch.from_numpy(weights(names[name], tuple(parameter.shape))))
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (2, 3, height, width)).astype(np.float32)
    latents = rng.standard_normal((2, 4, height // 8, width // 8)).astype(np.float32)
    with torch.no_grad():
        moments = model.encode(torch.from_numpy(images)).latent_dist.parameters
        decoded = model.decode(torch.from_numpy(latents)).sample
    return dict(
        images=images,
        latents=latents,
        moments=moments.numpy(),
        decoded=decoded.numpy(),
        names=np.array(sorted(names.values())),
    )


if __name__ == "__main__":
    if sys.argv[1:]:  # the file for compare_full_size.py
        np.savez_compressed(sys.argv[1], **results(SD2, 128, 192))
    else:
        # Latents of sides 3 and 5.
        np.savez_compressed(Path(__file__).with_name("vae.npz"), **results(SMALL, 24, 40))
